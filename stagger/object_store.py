"""Object stores (S3 first of all), through fsspec."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from stagger.errors import StaggerError, StorageError
from stagger.storage import ONE_PUT_BYTES, Entry

#: For a store that is asked for the newest truth each time: listings must not come from fsspec's cache.
S3_OPTIONS = {"use_listings_cache": False}

#: No small file of a run directory is larger.
WHOLE = 2**30


@contextlib.contextmanager
def asking(path: str) -> Iterator[None]:
    """What the store or the network says, as one error that names the path; a missing file stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StaggerError):
        raise
    except Exception as error:  # botocore's errors have no common base with fsspec's.
        raise StorageError(f"{path}: {type(error).__name__}: {error}") from error


class ObjectStore:
    """A `Backend` over one fsspec file system. An object appears whole, when its upload is complete, or never."""

    def __init__(self, protocol: str, options: dict[str, Any]) -> None:
        defaults = S3_OPTIONS if protocol in ("s3", "s3a") else {}
        try:
            self._files = fsspec.filesystem(protocol, **{**defaults, **options})
        except (ValueError, ImportError) as error:
            raise StaggerError(f"No storage speaks {protocol}://: {error}") from error

    def read(self, path: str) -> bytes:
        return self.read_range(path, 0, WHOLE)  # A ranged read is one GET, where a plain one asks HEAD first.

    def read_range(self, path: str, start: int, end: int) -> bytes:
        with asking(path):
            try:
                return cast("bytes", self._files.cat_file(path, start=start, end=end))
            except OSError as error:
                if "range" in str(error).lower():
                    return b""  # There is no byte to give: the object is empty, or ends before `start`.
                raise

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        found = self._files.cat_ranges(paths, [0] * len(paths), [WHOLE] * len(paths), on_error="return")
        for path, data in zip(paths, found, strict=True):
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                with asking(path):
                    raise data
        return [data if isinstance(data, bytes) else None for data in found]

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        with asking(path):
            self._files.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
        with asking(path):
            try:
                self._files.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
        return True

    def remove(self, path: str) -> None:
        with asking(path), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)

    def list(self, folder: str) -> list[Entry]:
        with asking(folder):
            try:
                found = self._files.ls(folder, detail=True)
            except FileNotFoundError:
                return []
        return [Entry(info["name"].rpartition("/")[2], info["size"]) for info in found if info["type"] == "file"]

    def walk(self, folder: str) -> Iterator[Entry]:
        root = self._files._strip_protocol(folder).rstrip("/") + "/"
        with asking(folder):
            try:
                found = self._files.find(folder, detail=True)
            except FileNotFoundError:
                return
        for name, info in found.items():
            if name.startswith(root) and not name.endswith("/"):
                yield Entry(name.removeprefix(root), info["size"])

    def size(self, path: str) -> int | None:
        with asking(path):
            try:
                info = self._files.info(path)
            except FileNotFoundError:
                return None
        return cast("int", info["size"]) if info["type"] == "file" else None

    def open(self, path: str) -> BinaryIO:
        with asking(path):
            return cast("BinaryIO", self._files.open(path, "rb"))

    def output(self, path: str, tag: str) -> ObjectOutput:
        return ObjectOutput(self._files, path)

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)  # Its names need no folders.

    def remove_leftovers(self, folder: str, tag: str) -> None:
        pass  # An object that was not committed has no name.

    def check_writable(self, folder: str) -> None:
        bucket = self._files._strip_protocol(folder).partition("/")[0]
        with asking(folder):
            reachable = self._files.exists(bucket)
        if not reachable:
            raise StaggerError(
                f"{folder} cannot be written: there is no bucket {bucket}. Create it, or correct the path."
            )


class ObjectOutput:
    """An object in the making: held in memory up to one PUT's size, then sent as parts of a multipart upload."""

    def __init__(self, files: Any, path: str) -> None:
        self.path = path
        self.size = 0
        self._files = files
        self._buffer: io.BytesIO | None = io.BytesIO()
        self._upload: Any = None

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self._buffer is not None:
            self._buffer.write(data)
            if self._buffer.tell() > ONE_PUT_BYTES:
                self._upload = self._files.open(self.path, "wb", autocommit=False, block_size=ONE_PUT_BYTES)
                self._upload.write(self._buffer.getbuffer())
                self._buffer = None
        else:
            self._upload.write(data)
        return len(data)

    def finish(self) -> None:
        if self._upload is not None:
            self._upload.close()

    def commit(self) -> None:
        if self._upload is not None:
            self._upload.commit()
            self._upload = None
        elif self._buffer is not None:
            self._files.pipe_file(self.path, self._buffer.getvalue())

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.discard()
        self._buffer = self._upload = None
