"""S3 as a `Backend`: retries, resumed reads, and one PUT or one multipart upload per output."""

from __future__ import annotations

import contextlib
import io
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stagger.errors import BadInput, StaggerError, StorageError
from stagger.storage import ONE_PUT_BYTES, S3_CONNECTIONS, Entry, Files
from stagger.storage.faults import NotKept, fault_of, status_of
from stagger.storage.retry import Retry
from stagger.storage.s3.engine import Changed, Engine, Page
from stagger.storage.s3.pace import paced
from stagger.storage.s3.parts import PartSender
from stagger.storage.s3.stream import Reading
from stagger.storage.s3.verify import Verifier, digest, md5_text

#: Bytes per part of a multipart upload. S3 takes 10 000 parts of at least 5 MiB: outputs of up to 83 GB.
PART_BYTES = 8 * 2**20

ENGINES = ("auto", "obstore", "s3fs")

#: What to do about an answer 501, appended to the error.
NOT_IMPLEMENTED = (
    "NotImplemented (501) means that the store does not know a header or this kind of request. If it is the checksum"
    " headers, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required (docs/storage.md)."
)
NO_CREATE = (
    "NotImplemented (501) means that the store has no conditional writes (If-None-Match), which keep two launches of a"
    " run, or two attempts of a rank, apart. Put run_dir on a shared file system or on another store (docs/storage.md);"
    " input and output may stay here."
)


class NoConditions(StorageError):
    """The store does not implement conditional writes."""


@contextlib.contextmanager
def asking(path: str) -> Iterator[None]:
    """Turn any error of the store or the network into a StorageError naming the path; a missing file's error passes."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, Changed, StaggerError, BadInput):
        raise
    except Exception as error:  # The engines' errors have no common base.
        raise StorageError(f"{path}: {explain(error)}") from error


def explain(error: BaseException, advice: str = NOT_IMPLEMENTED) -> str:
    """One line on what went wrong, including the store's own message, and `advice` for an answer 501."""
    from stagger.storage.s3.refusals import UNREACHABLE, meaning  # Tasks whose requests succeed do without it.

    kind = type(error).__name__ if error.__cause__ is None else type(error.__cause__).__name__
    text = " ".join(str(error).partition("Debug source:")[0].split())
    if "<Error>" in text:  # obstore includes the raw XML answer.
        text = ": ".join(re.findall(r"<(?:Code|Message)>([^<]*)<", text))
    if text == "None":  # Ceph's RGW sends a code without a message.
        text = str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", text))
    fault = fault_of(error)
    exhausted = f" ({fault}; retries exhausted)" if fault else ""
    text = f"{kind}: {text}{exhausted}{f'. {advice}' if status_of(error) == 501 else ''}"
    meant = UNREACHABLE if fault == "unreachable" else "" if fault else meaning(error)
    return f"{meant} ({text})" if meant else text


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


def split(path: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. Raises StaggerError when the bucket is missing."""
    bucket, _, key = path.partition("://")[2].partition("/")
    if not bucket:
        raise StaggerError(f"{path!r} names no bucket; write s3://bucket/folder.")
    return bucket, key


class S3:
    """A `Backend` for S3. An object appears whole, once its upload is complete, or never."""

    def __init__(self, options: dict[str, Any], retry: Retry) -> None:
        options = dict(options)
        self._engine = connect(options.pop("engine", "auto"), options)
        self._retry = retry
        self.verifier = Verifier(self._engine)
        self.held_bytes = 0  # Of finished outputs that wait in memory for their commit.

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
        self.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        try:
            self.put(path, data, create=True)
        except FileExistsError:
            # The object may be ours: a PUT whose answer was lost has still been made. Or it is gone by now.
            with contextlib.suppress(FileNotFoundError):
                return self.read(path) == data
            return False
        return True

    def put(self, path: str, data: bytes, *, create: bool = False, match: str = "", md5: bytes = b"") -> str:
        """Write an object with one PUT. Returns its ETag, once the store has shown that it holds `data`.

        `md5` is the digest of `data`, if it is known.
        Raises FileExistsError with `create` when the object exists, and Changed when it is not the version `match`.
        """
        bucket, key = split(path)
        tries = 0

        def put() -> str:
            nonlocal tries
            tries += 1
            try:
                etag = self._engine.put(bucket, key, data, create=create, match=match)
            except (FileExistsError, Changed):
                # The object may be ours: a PUT whose answer was lost has still been made.
                if tries > 1 and (own := self.verifier.own(bucket, key, data)):
                    return own
                raise
            return self.verifier.check_put(bucket, key, etag, data, md5 or digest(data))

        with asking(path), self.taken_back(bucket, key):
            try:
                return self._retry.call(path, put)
            except Exception as error:
                if (create or match) and status_of(error) == 501:
                    raise NoConditions(f"{path}: {explain(error, NO_CREATE)}") from error
                raise

    @contextlib.contextmanager
    def taken_back(self, bucket: str, key: str) -> Iterator[None]:
        """Remove an object that the store has kept otherwise than it was sent: nobody must take it for data."""
        try:
            yield
        except NotKept as error:
            if error.etag:
                with contextlib.suppress(Exception):
                    found = self._engine.head(bucket, key)
                    if found is not None and found.version == error.etag:
                        self._engine.delete(bucket, key, match=error.etag)
            raise

    def remove(self, path: str, version: str) -> None:
        bucket, key = split(path)
        with asking(path), contextlib.suppress(FileNotFoundError, Changed):
            if version:  # Not every store heeds the condition of a DELETE.
                found = self._retry.call(path, lambda: self._engine.head(bucket, key))
                if found is None or found.version != version:
                    return
            self._retry.call(path, lambda: self._engine.delete(bucket, key, match=version))

    def revoke(self, path: str, pending: str) -> None:
        self.abort(path, *split(path), pending)

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
        return S3Output(self, self._engine, self._retry, path, begin)

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
            self.abort(path, bucket, key, upload)
        return len(mine)

    def abort(self, path: str, bucket: str, key: str, upload: str) -> None:
        with asking(path), contextlib.suppress(FileNotFoundError):
            self._retry.call(path, lambda: self._engine.abort_upload(bucket, key, upload))

    def check_writable(self, folder: str) -> None:
        bucket, _ = split(folder)
        with asking(folder):
            reachable = self._retry.call(folder, lambda: self._engine.has_bucket(bucket))
        if not reachable:
            raise no_bucket(folder, bucket, "written")


def no_bucket(path: str, bucket: str, done: str) -> StaggerError:
    return StaggerError(f"{path} cannot be {done}: there is no bucket {bucket}. Create it, or correct the path.")


def bare(etag: str) -> str:
    return etag.strip('"')


class S3Output:
    """An object being written: held in memory up to the size of one PUT, then sent as parts of a multipart upload.

    Finished outputs wait in memory for their commit, as long as together they fit into one PUT.
    """

    def __init__(self, store: S3, engine: Engine, retry: Retry, path: str, begin: Callable[[str], None]) -> None:
        self.path = path
        self.size = 0
        self.version = ""  # The ETag that the store answered; empty before the commit.
        self._store = store
        self._engine = engine
        self._retry = retry
        self._begin = begin
        self._bucket, self._key = split(path)
        self._full: deque[bytes] = deque()  # Parts of PART_BYTES, until they are sent or the object is.
        self._buffer = io.BytesIO()  # What comes after them. getvalue() makes no copy.
        self._upload = ""
        self._sender: PartSender | None = None  # Sends the parts of the upload.
        self._parts: list[str] = []
        self._digests: list[bytes] = []
        self._md5 = b""  # Of all content, where it is written with one PUT.
        self._held = 0

    @property
    def digest(self) -> str:
        return md5_text([self._md5] if self._md5 else self._digests, whole=bool(self._md5))

    @property
    def pending(self) -> str:
        return self._upload

    @property
    def held(self) -> int:
        return self._gathered + (self._sender.held if self._sender else 0)

    @property
    def _gathered(self) -> int:
        return len(self._full) * PART_BYTES + self._buffer.tell()

    def write(self, data: bytes) -> int:
        self._buffer.write(data)
        self.size += len(data)
        if self._buffer.tell() >= PART_BYTES:
            self._cut()
            if self._upload or self._gathered > ONE_PUT_BYTES:
                self._send_parts()
        return len(data)

    def _cut(self) -> None:
        data = self._buffer.getvalue()
        end = len(data) - len(data) % PART_BYTES
        self._full.extend(data[start : start + PART_BYTES] for start in range(0, end, PART_BYTES))
        self._buffer = io.BytesIO()
        self._buffer.write(data[end:])

    def finish(self) -> None:
        if self._upload or self._store.held_bytes + self._gathered > ONE_PUT_BYTES:
            if self._buffer.tell():
                self._full.append(self._buffer.getvalue())
                self._buffer = io.BytesIO()
            sender = self._send_parts()
            with asking(self.path):
                sent = sender.finish()
            self._sender = None
            self._parts, self._digests = [etag for etag, _ in sent], [part for _, part in sent]
        else:
            self._md5 = digest(*self._full, self._buffer.getvalue())
            self._held = self._gathered
            self._store.held_bytes += self._held

    def _send_parts(self) -> PartSender:
        """Hand the full parts to the sender of the upload, which begins with the first of them."""
        with asking(self.path):
            if not self._upload:
                self._begin(self.path)
                self._upload = self._retry.call(self.path, lambda: self._engine.begin_upload(self._bucket, self._key))
            if self._sender is None:
                self._sender = PartSender(self._send_part, self._retry.check)
            while self._full:
                self._sender.put(self._full.popleft())
            return self._sender

    def _send_part(self, number: int, data: bytes, waiting: Callable[[], None]) -> tuple[str, bytes]:
        """Send a part, in a thread. Returns its ETag and its MD5."""
        part = digest(data)

        def send() -> str:
            etag = self._engine.put_part(self._bucket, self._key, self._upload, number, data)
            self._store.verifier.check_part(self._bucket, etag, part)
            return etag

        return self._retry.call(self.path, send, waiting), part

    def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
        self._release()
        with asking(self.path):
            if self._upload:
                self.version = self._complete(confirm)
                self._upload = ""
            else:
                self.version = self._put(confirm, replaces)
        self._buffer = io.BytesIO()

    def _put(self, confirm: Callable[[], None], replaces: str | None) -> str:
        """Write the object in one request. Nobody can revoke it, so its condition is that nobody else has written."""
        data = self._whole()
        version = self._stored() if replaces is None else replaces
        while True:
            try:
                return self._store.put(self.path, data, create=not version, match=version, md5=self._md5)
            except NoConditions:
                confirm()
                return self._store.put(self.path, data, md5=self._md5)
            except (FileExistsError, Changed):
                if own := self._retry.call(self.path, lambda: self._store.verifier.own(self._bucket, self._key, data)):
                    return own  # Written by a request whose answer was lost.
                confirm()
                stored = self._stored()
                if not stored or bare(stored) != bare(version):
                    version = stored
                elif version != bare(version):  # Ceph's RGW compares with the ETag without its quotes.
                    version = bare(version)
                else:
                    return self._store.put(self.path, data, md5=self._md5)

    def _whole(self) -> bytes:
        """What was written, joined part by part: it must not be in memory twice."""
        if not self._full:
            return self._buffer.getvalue()
        joined = io.BytesIO()
        while self._full:
            joined.write(self._full.popleft())
        joined.write(self._buffer.getvalue())
        self._buffer = joined
        return joined.getvalue()

    def _stored(self) -> str:
        """The ETag of the object that is there; empty if there is none."""
        found = self._retry.call(self.path, lambda: self._engine.head(self._bucket, self._key))
        return "" if found is None else found.version

    def _complete(self, confirm: Callable[[], None]) -> str:
        def complete() -> str:
            try:
                etag = self._engine.complete_upload(self._bucket, self._key, self._upload, self._parts)
            except FileNotFoundError as error:
                return self._completed_before(error, confirm)
            except Exception:
                confirm()  # RGW answers with 500 when a later attempt has aborted the upload.
                raise
            return self._check(etag)

        with self._store.taken_back(self._bucket, self._key):
            return self._retry.call(self.path, complete)

    def withdraw(self) -> None:
        self._store.remove(self.path, self.version)

    def _check(self, etag: str) -> str:
        check = self._store.verifier.check_upload
        return check(self._bucket, self._key, etag, self.size, self._digests, PART_BYTES)

    def _completed_before(self, error: FileNotFoundError, confirm: Callable[[], None]) -> str:
        """The ETag, if there is no such upload because an earlier request, its answer lost, has completed it."""
        try:
            return self._check("")
        except NotKept as reason:
            confirm()  # A later attempt may have revoked the upload.
            raise StorageError(f"{self.path}: the upload is gone ({error}), and not completed: {reason}") from error

    def abort(self) -> None:
        self._release()
        self._full.clear()
        self._buffer = io.BytesIO()
        if self._sender is not None:
            self._sender.stop()
            self._sender = None
        if self._upload:
            upload, self._upload = self._upload, ""
            self._store.abort(self.path, self._bucket, self._key, upload)

    def _release(self) -> None:
        self._store.held_bytes -= self._held
        self._held = 0
