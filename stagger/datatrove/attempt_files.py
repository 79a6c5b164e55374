"""The files of datatrove's blocks in one attempt of a rank: outputs of the rank, like those of stagger's writers.

A file that a block writes gets its name when the rank is done. Until then its block can read it back, overwrite and
remove it, under that name.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, cast

from stagger.datatrove.places import check_name, place_of
from stagger.errors import StaggerError
from stagger.pipeline import running_counts
from stagger.pipeline.compression import Codec
from stagger.pipeline.task_context import OutputFile, TaskContext
from stagger.storage.local_files import is_hidden_output
from stagger.storage.storage import is_local
from stagger.terminal import logger

#: fsspec's name of a codec -> stagger's, of those that stagger has.
CODECS: dict[str | None, Codec | None] = {None: None, "gzip": "gzip", "zstd": "zstd"}

#: Bytes copied at once.
PIECE_BYTES = 2**22


class StreamedFile(io.RawIOBase):
    """A file that its block writes once, from start to end."""

    def __init__(self, output: OutputFile) -> None:
        self.output = output
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self.output.append(piece)
        self._size += len(piece)
        return len(piece)

    def tell(self) -> int:
        """Bytes written, before compression: datatrove compares them with `max_file_size`."""
        return self._size

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.output.closing = None
            self.output.finish()


class Draft:
    """A file that its block may write, read back and write again: `file` is where it lies meanwhile."""

    def __init__(self, output: OutputFile, file: str) -> None:
        self.output = output
        self.file = file
        self._handles: list[IO[Any]] = []
        output.closing = self._end

    def open(self, files: Any, mode: str, **options: Any) -> IO[Any]:
        """Open the file with fsspec's `LocalFileSystem`. Raises StaggerError once the rank is being committed."""
        handle: IO[Any] = files.open(self.file, mode, **options)
        self._handles = [one for one in self._handles if not one.closed]
        self._handles.append(handle)
        return handle

    def _end(self) -> None:
        """Close what the block has left open; pass on what is not where the output is written."""
        for handle in self._handles:
            handle.close()
        if self.file != self.output.output.pending:
            with open(self.file, "rb") as content:
                while piece := content.read(PIECE_BYTES):
                    self.output.output.write(piece)
            os.unlink(self.file)


class AttemptFiles:
    """What the blocks of a rank have written so far: path -> file."""

    def __init__(self, task: TaskContext, steps: Sequence[Any] = ()) -> None:
        self._task = task
        self._steps = steps
        self._streamed: dict[str, StreamedFile] = {}
        self._drafts: dict[str, Draft] = {}
        self._local_copies = ""
        self._told: set[str] = set()
        self._outputs: dict[int, tuple[Any, OutputFile | None]] = {}  # By the file that datatrove writes to.
        self._latest: OutputFile | None = None
        self._running: set[int] = set()
        self._made_writers: set[int] = set()
        self._checked: set[int] = set()

    def close(self) -> None:
        """Remove the local copies of remote files."""
        if self._local_copies:
            shutil.rmtree(self._local_copies, ignore_errors=True)

    # What datatrove calls. `original` is its own method.

    def open(self, original: Callable[..., Any], folder: Any, path: str, mode: str = "rb", *more: Any, **options: Any):  # type: ignore[no-untyped-def]
        """`DataFolder.open`"""
        place = self._place(folder, path)
        draft, writes = self._drafts.get(place), bool(set("wax+") & set(mode))
        if writes and not place:
            self._tell_not_committed(folder)
        if not place or (draft is None and not writes):
            return original(folder, path, mode, *more, **options)
        if draft is None:
            draft = self._drafts[place] = self._new_draft(folder, path, place, mode)
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.utils import infer_compression

        if options.get("compression") == "infer":
            options["compression"] = infer_compression(place)
        return draft.open(LocalFileSystem(), mode.replace("x", "w"), *more, **options)

    def get_file(self, original: Callable[..., Any], manager: Any, name: str) -> Any:
        """`OutputFileManager.get_file`"""
        opened = manager.get_open_files()
        if (file := opened.get(name)) is None:
            if (file := self._stream(manager, name)) is not None:
                opened[name] = file
            else:
                file = original(manager, name)
            self._outputs[id(file)] = (file, self._output(self._place(manager.fs, name)))
        self._latest = self._outputs.get(id(file), (None, None))[1]
        return file

    def write(self, original: Callable[..., Any], writer: Any, *arguments: Any, **named: Any) -> Any:
        """`DiskWriter.write`: one record"""
        if id(writer) not in self._checked:
            self._checked.add(id(writer))
            check_name(writer.output_filename.template, self._task.world_size)
        self._latest = None
        result = original(writer, *arguments, **named)
        if (output := cast("OutputFile | None", self._latest)) is not None:
            output.records += 1
            if output.records == 1 and id(writer) not in self._running:
                output.aside, output.removed_by = True, self._step_of(writer)
        return result

    def made(self, original: Callable[..., Any], block: Any, *arguments: Any, **named: Any) -> None:
        """`PipelineStep.__init__`: a step of the rank has made a block, whose statistics are its own"""
        original(block, *arguments, **named)
        if hasattr(type(block), "default_output_filename"):  # Unless it runs, it only helps another block.
            self._made_writers.add(id(block))
        else:
            self._task.made_blocks.append((running_counts(), block))

    def run(self, original: Callable[..., Any], writer: Any, *arguments: Any, **named: Any) -> Any:
        """`DiskWriter.run`: the writer is a step, and does not hold what another block removes"""
        self._running.add(id(writer))
        if id(writer) in self._made_writers:
            self._made_writers.remove(id(writer))
            self._task.made_blocks.append((running_counts(), writer))
        return original(writer, *arguments, **named)

    def info(self, original: Callable[..., Any], folder: Any, path: str, *more: Any, **options: Any) -> Any:
        """`DataFolder.info`, from which fsspec derives `exists`, `isfile` and `size`"""
        place = self._place(folder, path)
        return self._entry(place, path) if place in self._drafts else original(folder, path, *more, **options)

    def exists(self, original: Callable[..., Any], folder: Any, path: str, *more: Any, **options: Any) -> bool:
        return self._place(folder, path) in self._drafts or original(folder, path, *more, **options)

    def size(self, original: Callable[..., Any], folder: Any, path: str) -> Any:
        place = self._place(folder, path)
        return self._entry(place, path)["size"] if place in self._drafts else original(folder, path)

    def remove(self, original: Callable[..., Any], folder: Any, path: Any, *more: Any, **options: Any) -> Any:
        """`DataFolder.rm_file` and `rm`"""
        place = self._place(folder, path) if isinstance(path, str) else ""
        output = self._output(place)
        if output is None:
            return original(folder, path, *more, **options)
        self._task.discard(output)
        self._drafts.pop(place, None)
        self._streamed.pop(place, None)
        return None

    def find(self, original: Callable[..., Any], folder: Any, path: str, *more: Any, **options: Any) -> Any:
        """`DataFolder.find`: the files below a path"""
        found = original(folder, path, *more, **options)
        depth = options.get("maxdepth")
        below = f"{path.strip('/')}/" if path.strip("/") else ""

        def fits(name: str) -> bool:
            return name.startswith(below) and (depth is None or name.removeprefix(below).count("/") < depth)

        return self._with_own(found, folder, fits)

    def glob(self, original: Callable[..., Any], folder: Any, path: str, *more: Any, **options: Any) -> Any:
        """`DataFolder.glob`: the files that match a pattern"""
        import re

        from fsspec.utils import glob_translate

        pattern = re.compile(glob_translate(path))
        found = original(folder, path, *more, **options)
        return self._with_own(found, folder, lambda name: pattern.match(name) is not None)

    def resolve_paths(self, original: Callable[..., Any], folder: Any, paths: Any) -> Any:
        """`DataFolder.resolve_paths`: a local file that is written lies elsewhere until the rank is done"""
        found = original(folder, paths)
        return self._file_of(found) if isinstance(found, str) else found

    # How it is done.

    def _stream(self, manager: Any, name: str) -> IO[Any] | None:
        """A file that is written once; None where that needs `open`."""
        from fsspec.utils import infer_compression

        place = self._place(manager.fs, name)
        codec = infer_compression(name) if manager.compression == "infer" else manager.compression
        if not place or manager.mode not in ("wb", "wt", "w") or codec not in CODECS:
            return None
        raw = StreamedFile(self._task.open_output(place, CODECS[codec]))
        self._streamed[place] = raw
        if "b" in manager.mode:
            return cast("IO[Any]", raw)
        text = io.TextIOWrapper(io.BufferedWriter(raw, PIECE_BYTES >> 4), encoding="utf-8")
        raw.output.closing = text.flush
        return text

    def _new_draft(self, folder: Any, path: str, place: str, mode: str) -> Draft:
        if not set("wx") & set(mode) and folder.exists(path):
            raise StaggerError(f"{place} is there already, and a block changes it: a rank that runs again would too.")
        if "r" in mode:
            raise FileNotFoundError(place)
        if is_local(place):
            output = self._task.open_draft(place)
            return Draft(output, output.output.pending)
        if not self._local_copies:
            self._local_copies = tempfile.mkdtemp(prefix="stagger-")
        descriptor, file = tempfile.mkstemp(dir=self._local_copies)
        os.close(descriptor)
        return Draft(self._task.open_output(place), file)

    def _step_of(self, writer: Any) -> int:
        """The number of the step, from 1 on, that has a writer; 0 for one that a function has made."""
        from stagger.datatrove.block_outputs import blocks_in

        numbered = enumerate(self._steps, 1)
        return next((number for number, step in numbered if any(one is writer for one in blocks_in(step))), 0)

    def _output(self, place: str) -> OutputFile | None:
        written = self._drafts.get(place) or self._streamed.get(place)
        return written.output if written is not None else None

    def _place(self, folder: Any, path: str) -> str:
        """The path of a file for stagger's storage; empty if the rank cannot commit what is written there."""
        return place_of(folder, path, self._task.storage.expanded_options("s3"))

    def _tell_not_committed(self, folder: Any) -> None:
        if folder.path not in self._told:
            self._told.add(folder.path)
            logger.warning(
                f"{folder.path}: a block writes there at once, not when the rank is done: stagger commits files on this"
                " machine's file systems, and on S3 with the storage_options of the run"
            )

    def _file_of(self, place: str) -> str:
        """Where the content of a local file is now."""
        output = self._output(place)
        return output.output.pending if output is not None and is_local(place) else place

    def _entry(self, place: str, name: str) -> dict[str, Any]:
        """What fsspec calls the info of a file."""
        return {"name": name, "size": os.path.getsize(self._drafts[place].file), "type": "file"}

    def _with_own(self, found: Any, folder: Any, fits: Callable[[str], bool]) -> Any:
        """A listing without the temporary names of outputs, and with the files of this attempt that fit."""
        own = {name: self._entry(place, name) for place, name in self._below(folder) if fits(name)}
        kept = [name for name in found if not is_hidden_output(name.rpartition("/")[2])]
        if isinstance(found, dict):
            return {**{name: found[name] for name in kept}, **own}
        return sorted({*kept, *own})

    def _below(self, folder: Any) -> Iterator[tuple[str, str]]:
        start = f"{self._place(folder, '').rstrip('/')}/"
        for place in self._drafts:
            if place.startswith(start):
                yield place, place.removeprefix(start)
