"""Single objects of S3: written, removed and compared, with retries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stagger.errors import StaggerError
from stagger.storage.faults import NotKept, status_of
from stagger.storage.retry import Retry
from stagger.storage.s3.engine import Changed, Engine
from stagger.storage.s3.failures import NO_CREATE, NoConditions, asking, explain
from stagger.storage.s3.verify import Verifier, digest


def split(path: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. Raises StaggerError when the bucket is missing."""
    bucket, _, key = path.partition("://")[2].partition("/")
    if not bucket:
        raise StaggerError(f"{path!r} names no bucket; write s3://bucket/folder.")
    return bucket, key


class Objects:
    """What a store and its outputs do with objects. `held_bytes` are those of finished outputs that wait in memory."""

    def __init__(self, engine: Engine, retry: Retry) -> None:
        self.engine = engine
        self.retry = retry
        self.verifier = Verifier(engine)
        self.held_bytes = 0

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
                etag = self.engine.put(bucket, key, data, create=create, match=match)
            except (FileExistsError, Changed):
                # The object may be ours: a PUT whose answer was lost has still been made.
                if tries > 1 and (own := self.verifier.own(bucket, key, data)):
                    return own
                raise
            return self.verifier.check_put(bucket, key, etag, data, md5 or digest(data))

        with asking(path), self.taken_back(bucket, key):
            try:
                return self.retry.call(path, put)
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
                    found = self.engine.head(bucket, key)
                    if found is not None and found.version == error.etag:
                        self.engine.delete(bucket, key, match=error.etag)
            raise

    def remove(self, path: str, version: str) -> None:
        bucket, key = split(path)
        with asking(path), contextlib.suppress(FileNotFoundError, Changed):
            if version:  # Not every store heeds the condition of a DELETE.
                found = self.retry.call(path, lambda: self.engine.head(bucket, key))
                if found is None or found.version != version:
                    return
            self.retry.call(path, lambda: self.engine.delete(bucket, key, match=version))

    def abort(self, path: str, bucket: str, key: str, upload: str) -> None:
        with asking(path), contextlib.suppress(FileNotFoundError):
            self.retry.call(path, lambda: self.engine.abort_upload(bucket, key, upload))
