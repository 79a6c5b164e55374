"""S3 as a `Backend`, with retries: single objects (objects.py), reads (stream.py), listings, outputs (output.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stagger.errors import StaggerError
from stagger.storage import S3_CONNECTIONS, Entry, Files
from stagger.storage.retry import Retry
from stagger.storage.s3.engine import Engine, Page
from stagger.storage.s3.failures import asking, no_bucket
from stagger.storage.s3.objects import Objects, split
from stagger.storage.s3.output import S3Output
from stagger.storage.s3.pace import paced
from stagger.storage.s3.stream import Reading

ENGINES = ("auto", "obstore", "s3fs")


def connect(engine: str, options: dict[str, Any]) -> Engine:
    """The engine called `engine`. Raises StaggerError when there is none, its package is missing, or the endpoint is no
    URL.

    `auto` is obstore, and s3fs for what obstore cannot do.
    """
    endpoint = options.get("endpoint_url")
    if endpoint is not None and not str(endpoint).startswith(("http://", "https://")):
        raise StaggerError(f"storage_options of s3: endpoint_url {endpoint!r} must begin with https:// or http://.")
    if engine == "auto":
        try:
            from stagger.storage.s3.auto_engine import auto
        except StaggerError:  # obstore is not installed, or not for this machine.
            engine = "s3fs"
        else:
            return auto(options)
    if engine == "s3fs":
        from stagger.storage.s3.s3fs_engine import S3fsEngine

        return S3fsEngine(options)
    if engine == "obstore":
        from stagger.storage.s3.obstore_engine import ObstoreEngine

        return ObstoreEngine(options)
    raise StaggerError(f"storage_options of s3: there is no engine {engine!r}; valid engines: {', '.join(ENGINES)}.")


class S3:
    """A `Backend` for S3. An object appears whole, once its upload is complete, or never."""

    def __init__(self, options: dict[str, Any], retry: Retry) -> None:
        options = dict(options)
        self._engine = connect(options.pop("engine", "auto"), options)
        self._retry = retry
        self._objects = Objects(self._engine, retry)

    @property
    def library(self) -> str:
        return self._engine.name

    def read(self, path: str) -> bytes:
        return self._read(path, 0, None)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self._read(path, start, end)

    def _read(self, path: str, start: int, end: int | None) -> bytes:
        bucket, key = split(path)
        with asking(path):
            return self._retry.call(path, lambda: b"".join(paced(self._engine.get(bucket, key, start, end, "").chunks)))

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        def read(path: str) -> bytes | None:
            try:
                return self.read(path)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(min(S3_CONNECTIONS, len(paths))) as threads:
            return list(threads.map(read, paths))

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        self._objects.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._objects.put(path, data, create=True)
        except FileExistsError:
            # The object may be ours: a PUT whose answer was lost has still been made. Or it is gone by now.
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == data
            return False
        return True

    def remove(self, path: str, version: str) -> None:
        self._objects.remove(path, version)

    def revoke(self, path: str, pending: str) -> None:
        self._objects.abort(path, *split(path), pending)

    def named(self, folder: str, start: str) -> list[str]:
        return [name for files in self._files(folder, recursive=True, start=start) for name in files.names]

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        return self._files(folder, recursive=recursive)

    def _files(self, folder: str, *, recursive: bool, start: str = "") -> Iterator[Files]:
        from stagger.storage.s3.key_listing import Requests, pages  # Tasks list nothing.

        bucket, key = split(folder)
        prefix = f"{key.rstrip('/')}/" if key else ""

        def ask(more: str, after: str) -> Page:
            return self._engine.page(bucket, prefix + start, recursive=recursive, more=more, after=after)

        def call(once: Callable[[], Page]) -> Page:
            with asking(folder):
                return self._retry.call(folder, once)

        try:
            for page in pages(folder, prefix + start, Requests(ask, call)):
                yield Files([name.removeprefix(prefix) for name in page.names], page.sizes, page.versions)
        except FileNotFoundError as error:
            raise no_bucket(folder, bucket, "listed") from error

    def entry(self, path: str) -> Entry | None:
        bucket, key = split(path)
        if not key:
            return None
        with asking(path):
            return self._retry.call(path, lambda: self._engine.head(bucket, key))

    def stream(self, path: str, size: int, version: str) -> Iterator[bytes]:
        bucket, key = split(path)
        with asking(path):
            yield from Reading(self._engine, bucket, key, size, version).pieces(self._retry, path)

    def stream_part(
        self, path: str, size: int, version: str, span: tuple[int, int], waiting: Callable[[], None]
    ) -> Iterator[bytes]:
        bucket, key = split(path)
        with asking(path):
            reading = Reading(self._engine, bucket, key, size, version)
            yield from reading.pieces(self._retry, path, span, waiting)

    def output(self, path: str, tag: str, begin: Callable[[str], None], *, record: bool) -> S3Output:
        return S3Output(self._objects, path, begin)

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)  # S3 has no folders to make.

    def remove_leftovers(self, folder: str, tag: str) -> None:
        pass  # An uncommitted object has no name; unfinished uploads are aborted from the upload notes.

    def abort_uploads(self, path: str) -> int:
        bucket, key = split(path)
        with asking(path):
            found = self._retry.call(path, lambda: self._engine.uploads(bucket, key))
        mine = [upload for name, upload in found if name == key]
        for upload in mine:
            self._objects.abort(path, bucket, key, upload)
        return len(mine)

    def check_writable(self, folder: str) -> None:
        bucket, _ = split(folder)
        with asking(folder):
            reachable = self._retry.call(folder, lambda: self._engine.has_bucket(bucket))
        if not reachable:
            raise no_bucket(folder, bucket, "written")
