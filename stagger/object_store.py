"""Object stores (S3 first of all), through fsspec."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from stagger.errors import StaggerError
from stagger.storage import ONE_PUT_BYTES, Entry

#: For a store that is asked for the newest truth each time: listings must not come from fsspec's cache.
S3_OPTIONS = {"use_listings_cache": False}


class ObjectStore:
    """A `Backend` over one fsspec file system. An object appears whole, when its upload is complete, or never."""

    def __init__(self, protocol: str, options: dict[str, Any]) -> None:
        self._protocol = protocol
        defaults = S3_OPTIONS if protocol in ("s3", "s3a") else {}
        try:
            self._files = fsspec.filesystem(protocol, **{**defaults, **options})
        except (ValueError, ImportError) as error:
            raise StaggerError(f"No storage speaks {protocol}://: {error}") from error

    def read(self, path: str) -> bytes:
        # The end of the range is beyond any object: a ranged read is one GET, where a plain one asks HEAD first.
        return self.read_range(path, 0, ONE_PUT_BYTES * 16)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        try:
            return cast("bytes", self._files.cat_file(path, start=start, end=end))
        except OSError as error:
            if "InvalidRange" in str(error) or "range" in str(error).lower():
                return b""  # An empty object has no byte to give.
            raise

    def read_many(self, paths: list[str]) -> list[bytes]:
        found = self._files.cat_ranges(paths, [0] * len(paths), [ONE_PUT_BYTES] * len(paths), on_error="return")
        for data in found:
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
        return [data for data in found if isinstance(data, bytes)]

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        self._files.pipe_file(path, data)

    def create(self, path: str, data: bytes) -> bool:
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
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(path)

    def list(self, folder: str) -> list[Entry]:
        try:
            found = self._files.ls(folder, detail=True)
        except FileNotFoundError:
            return []
        return [Entry(info["name"].rpartition("/")[2], info["size"]) for info in found if info["type"] == "file"]

    def walk(self, folder: str) -> Iterator[Entry]:
        root = self._files._strip_protocol(folder).rstrip("/") + "/"
        try:
            found = self._files.find(folder, detail=True)
        except FileNotFoundError:
            return
        for name, info in found.items():
            if name.startswith(root) and not name.endswith("/"):
                yield Entry(name.removeprefix(root), info["size"])

    def size(self, path: str) -> int | None:
        try:
            info = self._files.info(path)
        except FileNotFoundError:
            return None
        return cast("int", info["size"]) if info["type"] == "file" else None

    def open(self, path: str) -> BinaryIO:
        return cast("BinaryIO", self._files.open(path, "rb"))

    def output(self, path: str, tag: str) -> ObjectOutput:
        return ObjectOutput(self._files, path)

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)  # Its names need no folders.

    def remove_leftovers(self, folder: str, tag: str) -> None:
        pass  # An object that was not committed has no name.

    def check_writable(self, folder: str) -> None:
        bucket = self._files._strip_protocol(folder).partition("/")[0]
        try:
            reachable = self._files.exists(bucket)
        except Exception as error:
            raise StaggerError(f"{folder} cannot be reached: {error}") from error
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
