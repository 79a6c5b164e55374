"""Notes of multipart uploads under way, so that those of a killed task can be aborted: nothing else ever ends them.

The note is written before the upload begins, and holds just the path: whatever upload of that very object is found when
nobody writes it any more was left behind.
"""

from __future__ import annotations

from stagger.errors import StorageError
from stagger.rundir.stage_folder import StageFolder, decode, encode
from stagger.task.attempt_log import log


class UploadNotes:
    """The notes of one attempt."""

    def __init__(self, folder: StageFolder, rank: int, attempt: str) -> None:
        self._folder = folder
        self._rank = rank
        self._attempt = attempt
        self._paths: list[str] = []

    def begin(self, path: str) -> None:
        """An upload of `path` is about to begin."""
        note = self._folder.upload(self._rank, self._attempt, len(self._paths))
        self._folder.storage.write(note, encode({"path": path}))
        self._paths.append(note)

    def end(self) -> None:
        """All uploads have been completed or aborted."""
        for note in self._paths:
            try:
                self._folder.storage.remove(note)
            except StorageError as error:  # The rank's fate is decided by now; the stage's end looks at the note.
                log(f"the note of an upload stays: {error}", "WARNING")
        self._paths = []


def abort_left_uploads(folder: StageFolder) -> int:
    """Abort what killed attempts had begun; call it only when no attempt is active. Returns how many there were."""
    storage = folder.storage
    notes = folder.uploads()
    count = 0
    for note, data in zip(notes, storage.read_many(notes), strict=True):
        if data is not None:
            count += storage.abort_uploads(decode(data, note, "path")["path"])
            storage.remove(note)
    return count
