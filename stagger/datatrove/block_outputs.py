"""What datatrove's blocks write, as a launch can know it: the folders, and the names of the files as far as known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from stagger.datatrove.places import check_name, place_of
from stagger.datatrove.shape import is_block
from stagger.errors import StaggerError, counted
from stagger.pipeline import Shard
from stagger.pipeline.hooks import Writer
from stagger.storage.storage import join

#: Class of a block -> templates of the names of its files, for blocks that do not let their users name them.
FILE_NAMES = {
    "MinhashDedupSignature": ["bucket_{number}/{rank}.minhash.sig"],
    "MinhashDedupBuckets": ["{rank}_{number}.dups"],
    "MinhashDedupCluster": ["{rank}.remove", "{rank}.clusters", "{rank}.sizes"],
    "ExactDedupSignature": ["{number}/{rank}.c4_sig"],
    "SentenceDedupSignature": ["{number}/{rank}.c4_sig"],
}

#: Attributes and items in which blocks are looked for: a step may hold a list of a million words.
MOST_LOOKED_AT = 100

#: Fields of datatrove's file names -> the fields of stagger's. All others are metadata: any text, also a path.
NAME_FIELDS = {"rank": "{rank}"}


@dataclass(frozen=True)
class BlockOutput(Writer):
    """A folder that a block writes to.

    `templates` are those of stagger's `output_names`; `name` is the name that the block was given, empty if it chooses
    the names itself.
    """

    folder: str
    templates: tuple[str, ...] = ()
    name: str = ""

    @property
    def output_folder(self) -> str:
        return self.folder

    @property
    def output_names(self) -> list[str]:
        return list(self.templates)

    def check_tasks(self, tasks: int) -> None:
        if self.name:
            check_name(self.name, tasks)
        elif tasks > 1 and any("{" not in template for template in self.templates):
            raise StaggerError(
                f"it writes {self.templates[0]} in {self.folder}, which would be the same file for all"
                f" {counted(tasks, 'rank')}: give it a stage with tasks: 1."
            )

    def planned_outputs(self, ranks: Sequence[Sequence[Shard]]) -> Iterator[tuple[str, str]]:
        """The file of each rank, if its name depends on the rank alone."""
        template = self.templates[0] if self.name and self.templates else "{stem}"
        if "{stem}" not in template:
            for rank in range(len(ranks)):
                name = template.replace("{rank}", f"{rank:05d}").replace("{number}", "000")
                yield join(self.folder, name), f"rank {rank} by a datatrove writer"


def outputs_of(step: Any) -> list[BlockOutput]:
    """Where the blocks of a step write: itself, and writers in its attributes, such as an `exclusion_writer`.

    A writer of the Hugging Face Hub is left out: it uploads its files by itself.
    """
    found = (_output_of(one) for one in blocks_in(step) if not hasattr(one, "upload_files"))
    return [output for output in found if output is not None]


def writes(step: Any) -> bool:
    """Whether the blocks of a step write files, to any place."""
    return any(folder_of(one) is not None for one in blocks_in(step))


def uncommitted_of(step: Any, s3_options: Mapping[str, Any]) -> list[str]:
    """What the blocks of a step write that a rank cannot commit, a phrase for each."""
    found = []
    for one in blocks_in(step):
        folder = folder_of(one)
        if hasattr(one, "upload_files"):
            found.append(f"{type(one).__name__} sends its files to the Hub")
        elif folder is not None and not place_of(folder, s3_options=s3_options):
            found.append(f"{type(one).__name__} writes to {folder.path}")
    return found


def blocks_in(step: Any) -> Iterator[Any]:
    """The blocks of a step, each once: itself, those in its attributes or arguments, and those in the blocks' own."""
    seen: set[int] = set()
    if isinstance(step, partial):
        yield from _blocks_in([step.args, step.keywords], seen)
    elif is_block(step):
        yield from _blocks_in(step, seen)
    elif not isinstance(step, type):
        yield from _blocks_in(getattr(step, "__dict__", {}), seen)


def _blocks_in(value: Any, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen or isinstance(value, type):
        return
    seen.add(id(value))
    inner: Iterable[Any] = ()
    if is_block(value):
        yield value
        inner = getattr(value, "__dict__", {}).values()
    elif isinstance(value, (list, tuple)):
        inner = value
    elif isinstance(value, Mapping):
        inner = value.values()
    for one in islice(inner, MOST_LOOKED_AT):
        yield from _blocks_in(one, seen)


def folder_of(block: Any) -> Any:
    """datatrove's `DataFolder` that a block writes to; None if it has none."""
    folder = getattr(block, "output_folder", None)
    return folder if hasattr(folder, "resolve_paths") else None


def _output_of(block: Any) -> BlockOutput | None:
    """Where a block writes. In a folder with options of its own, which may not be the run's, it claims no names."""
    folder = folder_of(block)
    place = "" if folder is None else place_of(folder)
    if not place:
        return None
    name = getattr(getattr(block, "output_filename", None), "template", "")
    return BlockOutput(place, _templates(block, name) if place_of(folder, s3_options={}) else (), name)


def _templates(block: Any, name: str) -> tuple[str, ...]:
    if name:
        part = "{number}_" if getattr(block, "max_file_size", 0) > 0 else ""
        return (with_part(stagger_template(name), part),)
    if hasattr(block, "extract_stats"):
        return tuple(f"{group}/{{stem}}/{{rank}}.json" for group in block.groups)
    if getattr(block, "save_bloom_filter", False):
        return ("bloom_filter.bloom",)
    return tuple(FILE_NAMES.get(type(block).__name__, ()))


def stagger_template(name: str) -> str:
    """The file name of a datatrove writer as a template of `OutputNames`.

    >>> stagger_template("${dump}/${rank}.jsonl.gz")
    '{stem}/{rank}.jsonl.gz'
    """

    def field(match: re.Match[str]) -> str:
        return "$" if match["escaped"] else NAME_FIELDS.get(match["braced"] or match["plain"], "{stem}")

    return re.sub(r"\$(?:(?P<escaped>\$)|\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))", field, name)


def with_part(template: str, part: str) -> str:
    """The template with the number of the part before the file's name, where datatrove writes it."""
    folder, slash, name = template.rpartition("/")
    return f"{folder}{slash}{part}{name}"
