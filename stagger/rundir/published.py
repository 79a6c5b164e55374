"""What of a stage's outputs is in a repository of the Hugging Face Hub: publish.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from stagger.errors import counted
from stagger.rundir.stage_folder import StageFolder, encode, read_fields
from stagger.storage.storage import join


@dataclass(frozen=True)
class Published:
    """The last try to publish the outputs of a stage.

    repo, path, revision: where they go.
    files: the paths in the repository that the last commit of this run wrote.
    content: a hash of the paths, sizes and checksums of the outputs of that commit.
    commit, url: the commit; empty while there is none.
    time: when the last try ended, in seconds since the epoch.
    error: why it failed; empty if it did not.
    """

    repo: str
    path: str
    revision: str
    files: tuple[str, ...] = ()
    content: str = ""
    commit: str = ""
    url: str = ""
    time: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        """The end of a sentence about it, such as `3 files in https://.../datasets/me/data, commit 1a2b3c4`."""
        if self.error:
            return f"to {self.repo}: {self.error}"
        return f"{counted(len(self.files), 'file')} in {self.url}, commit {self.commit[:7]}"


def read_published(folder: StageFolder) -> Published | None:
    """The record of a stage; None if there is none. Raises StaggerError when it is damaged."""
    known = read_fields(folder.storage, join(folder.path, "publish.json"), Published)
    return None if known is None else Published(**{**known, "files": tuple(known.get("files", ()))})


def write_published(folder: StageFolder, record: Published) -> None:
    folder.storage.write(join(folder.path, "publish.json"), encode(asdict(record)))
