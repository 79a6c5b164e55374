"""Notes of multipart uploads in flight, so that a killed task's uploads can be aborted: nothing else ends them.

A note is written before its upload begins, and holds only the path of the object. Once no attempt is active, any upload
of that object was left behind.
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
        """Write the note of an upload of `path` that is about to begin."""
        note = self._folder.upload(self._rank, self._attempt, len(self._paths))
        self._folder.storage.write(note, encode({"path": path}))
        self._paths.append(note)

    def end(self) -> None:
        """Remove the notes, once all uploads have been completed or aborted."""
        for note in self._paths:
            try:
                self._folder.storage.remove(note)
            except StorageError as error:  # The rank's outcome is decided; the end of the stage handles the note.
                log(f"the note of an upload could not be removed: {error}", "WARNING")
        self._paths = []


def abort_left_uploads(folder: StageFolder) -> int:
    """Abort the uploads of killed attempts. Call it only when no attempt is active. Returns their number."""
    storage = folder.storage
    notes = folder.uploads()
    count = 0
    for note, data in zip(notes, storage.read_many(notes), strict=True):
        if data is not None:
            count += storage.abort_uploads(str(decode(data, note, "path")["path"]))
            storage.remove(note)
    return count
