"""All other object stores (Google's, Azure's, Hugging Face's, ...), through fsspec. S3 has its own backend: s3/."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import fsspec

from stagger.errors import StaggerError, StorageError, counted
from stagger.storage import ONE_PUT_BYTES, Crc, Entry, Files
from stagger.storage.faults import NotKept, WrongAnswer
from stagger.storage.retry import Retry

#: Bytes per read request.
CHUNK_BYTES = 8 * 2**20

#: Upper limit in bytes for reading a file whole: no small file of a run directory is larger.
WHOLE = 2**30

T = TypeVar("T")


@contextlib.contextmanager
def asking(path: str) -> Iterator[None]:
    """Turn any error of the store or the network into a StorageError naming the path; a missing file's error passes."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, StaggerError):
        raise
    except Exception as error:  # The implementations' errors have no common base.
        raise StorageError(f"{path}: {type(error).__name__}: {error}") from error


class ObjectStore:
    """A `Backend` over one fsspec file system. An object appears whole, once its upload is complete, or never."""

    def __init__(self, protocol: str, options: dict[str, Any], retry: Retry) -> None:
        try:
            self._files = fsspec.filesystem(protocol, **options)
        except (ValueError, ImportError) as error:
            raise StaggerError(f"Cannot open {protocol}:// paths: {error}") from error
        self._retry = retry

    @property
    def library(self) -> str:
        return type(self._files).__module__.partition(".")[0]

    def _ask(self, path: str, ask: Callable[[], T]) -> T:
        with asking(path):
            return self._retry.call(path, ask)

    def read(self, path: str) -> bytes:
        return self.read_range(path, 0, WHOLE)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self._read_range(path, start, end)

    def _read_range(self, path: str, start: int, end: int, waiting: Callable[[], None] = lambda: None) -> bytes:
        def ask() -> bytes:
            data = cast("bytes", self._files.cat_file(path, start=start, end=end))
            if len(data) > end - start:
                raise WrongAnswer(
                    f"{counted(end - start, 'byte', 'was')} requested, and the store answered with {len(data)}"
                )
            return data

        with asking(path):
            return self._retry.call(path, ask, waiting)

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        with asking(paths[0]):
            found = self._files.cat_ranges(paths, [0] * len(paths), [WHOLE] * len(paths), on_error="return")
        return [data if isinstance(data, bytes) else self._again(path) for path, data in zip(paths, found, strict=True)]

    def _again(self, path: str) -> bytes | None:
        """Read a file once more, on its own, because the concurrent request for it failed."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        self._ask(path, lambda: self._files.pipe_file(path, data))

    def create(self, path: str, data: bytes) -> bool:
        tries = 0

        def ask() -> None:
            nonlocal tries
            tries += 1
            self._files.pipe_file(path, data, mode="create")

        try:
            self._ask(path, ask)
        except FileExistsError:
            # The file may be ours: a request whose answer was lost has still been made.
            with contextlib.suppress(FileNotFoundError):
                return tries > 1 and self.read(path) == data
            return False
        return True

    def remove(self, path: str, version: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(path, lambda: self._files.rm_file(path))

    def revoke(self, path: str, pending: str) -> None:
        pass  # fsspec can neither abort the upload of another process nor set conditions.

    def named(self, folder: str, start: str) -> list[str]:
        below, _, name = start.rpartition("/")
        below = f"{below}/" if below else ""
        return [below + entry.name for entry in self._list(f"{folder}/{below}") if entry.name.startswith(name)]

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        yield Files.of(sorted(self._walk(folder) if recursive else self._list(folder)))

    def _list(self, folder: str) -> list[Entry]:
        self._files.invalidate_cache()
        try:
            found = self._ask(folder, lambda: self._files.ls(folder, detail=True))
        except FileNotFoundError:
            return []
        return [Entry(info["name"].rpartition("/")[2], info["size"]) for info in found if info["type"] == "file"]

    def _walk(self, folder: str) -> list[Entry]:
        root = self._files._strip_protocol(folder).rstrip("/") + "/"
        self._files.invalidate_cache()
        try:
            found = self._ask(folder, lambda: self._files.find(folder, detail=True))
        except FileNotFoundError:
            return []
        return [Entry(name.removeprefix(root), info["size"]) for name, info in found.items() if name.startswith(root)]

    def entry(self, path: str) -> Entry | None:
        self._files.invalidate_cache()
        try:
            info = self._ask(path, lambda: self._files.info(path))
        except FileNotFoundError:
            return None
        return Entry(path, info["size"]) if info["type"] == "file" else None

    def stream(self, path: str, size: int, version: str) -> Iterator[bytes]:
        return self.stream_part(path, size, version, (0, size), lambda: None)

    def stream_part(
        self, path: str, size: int, version: str, span: tuple[int, int], waiting: Callable[[], None]
    ) -> Iterator[bytes]:
        for start in range(*span, CHUNK_BYTES):
            yield self._read_range(path, start, min(start + CHUNK_BYTES, span[1]), waiting)

    def output(self, path: str, tag: str, begin: Callable[[str], None], *, record: bool) -> ObjectOutput:
        return ObjectOutput(self._files, path, self._retry)

    def abort_uploads(self, path: str) -> int:
        return 0  # fsspec cannot list unfinished uploads.

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)  # An object store has no folders to make.

    def remove_leftovers(self, folder: str, tag: str) -> None:
        pass  # An uncommitted object has no name.

    def check_writable(self, folder: str) -> None:
        bucket = self._files._strip_protocol(folder).partition("/")[0]
        reachable = self._ask(folder, lambda: self._files.exists(bucket))
        if not reachable:
            raise StaggerError(
                f"{folder} cannot be written: there is no bucket {bucket}. Create it, or correct the path."
            )


class ObjectOutput:
    """An object being written: held in memory up to the size of one PUT, then sent in parts by fsspec.

    fsspec cannot send a part again, so a part that fails is not retried.
    """

    def __init__(self, files: Any, path: str, retry: Retry) -> None:
        self.path = path
        self.size = 0
        self.pending = ""
        self.version = ""
        self._files = files
        self._retry = retry
        self._crc = Crc()
        self._buffer: io.BytesIO | None = io.BytesIO()
        self._upload: Any = None

    @property
    def digest(self) -> str:
        return str(self._crc)

    @property
    def held(self) -> int:
        return self._buffer.tell() if self._buffer is not None else 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self._crc.add(data)
        if self._buffer is not None:
            self._buffer.write(data)
            if self._buffer.tell() > ONE_PUT_BYTES:
                self._begin_upload(self._buffer)
                self._buffer = None
        else:
            with asking(self.path):
                self._upload.write(data)
        return len(data)

    def _begin_upload(self, buffer: io.BytesIO) -> None:
        def begin() -> Any:
            return self._files.open(self.path, "wb", autocommit=False, block_size=ONE_PUT_BYTES)

        with asking(self.path):
            self._upload = self._retry.call(self.path, begin)
            self._upload.write(buffer.getbuffer())

    def pause(self) -> None: ...

    def finish(self) -> None:
        if self._upload is not None:
            with asking(self.path):
                self._upload.close()

    def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
        with asking(self.path):
            if self._upload is not None:
                self._retry.call(self.path, self._upload.commit)
                self._upload = None
                self._retry.call(self.path, self._check_kept)
            elif self._buffer is not None:
                data = self._buffer.getvalue()
                self._retry.call(self.path, lambda: self._put(data))

    def _put(self, data: bytes) -> None:
        self._files.pipe_file(self.path, data)
        self._check_kept()

    def _check_kept(self) -> None:
        """Raise NotKept when the store does not hold as many bytes as were written."""
        self._files.invalidate_cache()
        try:
            size = self._files.info(self.path)["size"]
        except FileNotFoundError:
            raise NotKept("the store accepted the object, but does not have it") from None
        if size != self.size:
            raise NotKept(f"the store holds {counted(size, 'byte')} of the {self.size:,} that were written")

    def withdraw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self.path)

    def abort(self) -> None:
        upload, self._upload, self._buffer = self._upload, None, None
        if upload is not None:
            with asking(self.path):
                upload.discard()
