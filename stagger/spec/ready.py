"""The ready pipelines that ship with stagger: what each does, and copies of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stagger.errors import StaggerError
from stagger.shipped import shipped
from stagger.spec.nearest import nearest

#: A line of a file's header, without the sign of a comment.
_HEADER = re.compile(r"# ?(.*)")

#: The end of a sentence.
_END = re.compile(r"(?<=\.)\s")


@dataclass(frozen=True)
class ReadyPipeline:
    """A ready pipeline: its file, and the modules beside it that hold its steps."""

    file: Path
    sentence: str
    hosts_blocks: bool
    modules: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file, *self.modules)


def ready_pipelines() -> list[ReadyPipeline]:
    """All ready pipelines, by name."""
    return [_read(file) for file in sorted(shipped("pipelines").glob("*.yaml"))]


def _read(file: Path) -> ReadyPipeline:
    text = file.read_text()
    beside = (module for module in sorted(file.parent.glob("*.py")) if re.search(rf"\b{module.stem}:\w", text))
    return ReadyPipeline(file, first_sentence(text), "\nblocks:" in text, tuple(beside))


def first_sentence(text: str) -> str:
    r"""The first sentence of a file's header.

    >>> first_sentence("# Keeps the longer entries\n# of a text. Run it with: x\nname: y\n")
    'Keeps the longer entries of a text.'
    """
    header = []
    for line in text.splitlines():
        if (found := _HEADER.fullmatch(line)) is None or not found[1]:
            break
        header.append(found[1])
    return _END.split(" ".join(header), maxsplit=1)[0]


def copy_ready(name: str, folder: Path) -> list[Path]:
    """Copy a ready pipeline and the modules of its steps into a folder. Returns the new files, the pipeline's first.

    Raises StaggerError when there is no such pipeline, or when the folder has a file of one of these names: then
    nothing is copied.
    """
    ready = {one.name: one for one in ready_pipelines()}
    wanted = name.removeprefix("pipelines/").removesuffix(".yaml")
    if wanted not in ready:
        raise StaggerError(f"There is no ready pipeline {name!r}; {nearest(wanted, list(ready))}")
    copies = {folder / file.name: file.read_bytes() for file in ready[wanted].files}
    if there := [str(copy) for copy in copies if copy.exists() or copy.is_symlink()]:
        raise StaggerError(
            f"{' and '.join(there)} {'exist' if len(there) > 1 else 'exists'}, and stagger init overwrites nothing:"
            f" nothing was copied. Give another folder: stagger init {wanted} FOLDER"
        )
    if folder.exists() and not folder.is_dir():
        raise StaggerError(f"{folder} is no folder; give another one: stagger init {wanted} FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for copy, content in copies.items():
            with copy.open("xb") as file:
                file.write(content)
    except OSError as error:
        raise StaggerError(f"{folder} cannot take the copy: {error.strerror or error}. Give another folder.") from error
    return list(copies)
