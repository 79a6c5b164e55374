"""An output to S3: one PUT, or one multipart upload whose parts are sent while the task goes on."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable

from stagger.errors import StorageError
from stagger.storage import ONE_PUT_BYTES
from stagger.storage.faults import NotKept
from stagger.storage.s3.engine import Changed
from stagger.storage.s3.failures import NoConditions, asking
from stagger.storage.s3.objects import Objects, split
from stagger.storage.s3.parts import PartSender
from stagger.storage.s3.verify import digest, md5_text

#: Bytes per part of a multipart upload. S3 takes 10 000 parts of at least 5 MiB: outputs of up to 83 GB.
PART_BYTES = 8 * 2**20


class S3Output:
    """An object being written: held in memory up to the size of one PUT, then sent as parts of a multipart upload.

    Finished outputs wait in memory for their commit, as long as together they fit into one PUT.
    """

    def __init__(self, objects: Objects, path: str, begin: Callable[[str], None]) -> None:
        self.path = path
        self.size = 0
        self.version = ""  # The ETag that the store answered; empty before the commit.
        self._objects = objects
        self._engine = objects.engine
        self._retry = objects.retry
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

    def pause(self) -> None: ...

    def finish(self) -> None:
        if self._upload or self._objects.held_bytes + self._gathered > ONE_PUT_BYTES:
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
            self._objects.held_bytes += self._held

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
            self._objects.verifier.check_part(self._bucket, etag, part)
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
        own = self._objects.verifier.own
        while True:
            try:
                return self._objects.put(self.path, data, create=not version, match=version, md5=self._md5)
            except NoConditions:
                confirm()
                return self._objects.put(self.path, data, md5=self._md5)
            except (FileExistsError, Changed):
                if etag := self._retry.call(self.path, lambda: own(self._bucket, self._key, data)):
                    return etag  # Written by a request whose answer was lost.
                confirm()
                stored = self._stored()
                if not stored or bare(stored) != bare(version):
                    version = stored
                elif version != bare(version):  # Ceph's RGW compares with the ETag without its quotes.
                    version = bare(version)
                else:
                    return self._objects.put(self.path, data, md5=self._md5)

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

        with self._objects.taken_back(self._bucket, self._key):
            return self._retry.call(self.path, complete)

    def withdraw(self) -> None:
        self._objects.remove(self.path, self.version)

    def _check(self, etag: str) -> str:
        check = self._objects.verifier.check_upload
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
            self._objects.abort(self.path, self._bucket, self._key, upload)

    def _release(self) -> None:
        self._objects.held_bytes -= self._held
        self._held = 0


def bare(etag: str) -> str:
    return etag.strip('"')
