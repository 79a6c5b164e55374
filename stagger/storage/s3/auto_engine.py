"""The default S3 engine: obstore, and s3fs for each bucket and each key that obstore cannot serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from stagger.storage import Entry
from stagger.storage.faults import fault_of
from stagger.storage.s3.engine import Body, Changed, Engine, Page, Uploader
from stagger.storage.s3.obstore_engine import UNFIT, ObstoreEngine

T = TypeVar("T")

#: Answers that are no failures of the engine.
ANSWERS = (FileNotFoundError, FileExistsError, Changed)


def auto(options: dict[str, Any]) -> Engine:
    """The fastest engine for these options and this environment. Raises StaggerError when s3fs does not take them."""
    try:
        fast = ObstoreEngine(options)
        if not (why := fast.beyond()):
            return AutoEngine(fast)
    except Exception as error:  # Options that only s3fs takes, AWS files with errors: s3fs reports them.
        why = str(error).partition(";")[0]
    from stagger.storage.s3.s3fs_engine import S3fsEngine

    return S3fsEngine(options, why)


class AutoEngine:
    """An `Engine` that asks obstore until it fails for good where s3fs does not, as with a bucket of another region."""

    def __init__(self, fast: ObstoreEngine) -> None:
        self._fast = fast
        self._served: set[str] = set()  # Buckets that obstore has served.
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        return self._fast.name

    @property
    def keyed(self) -> set[str]:
        return self._fast.keyed

    @property
    def _full(self) -> Engine:
        return self._fast.s3fs

    def _either(self, bucket: str, key: str, call: Callable[[Engine], T]) -> T:
        if bucket in self._refused or UNFIT.search(key):
            return call(self._full)
        if bucket in self._served:
            return call(self._fast)
        try:
            answer = call(self._fast)
        except ANSWERS:
            self._served.add(bucket)
            raise
        except Exception as error:  # The engines' errors have no common base.
            if fault_of(error):
                raise
            answer = call(self._full)
            self._refused.add(bucket)
            return answer
        self._served.add(bucket)
        return answer

    def get(self, bucket: str, key: str, start: int, end: int | None, version: str) -> Body:
        return self._either(bucket, key, lambda engine: engine.get(bucket, key, start, end, version))

    def put(self, bucket: str, key: str, data: bytes, *, create: bool = False, match: str = "") -> str:
        return self._either(bucket, key, lambda engine: engine.put(bucket, key, data, create=create, match=match))

    def delete(self, bucket: str, key: str, *, match: str = "") -> None:
        self._either(bucket, key, lambda engine: engine.delete(bucket, key, match=match))

    def head(self, bucket: str, key: str) -> Entry | None:
        return self._either(bucket, key, lambda engine: engine.head(bucket, key))

    def page(self, bucket: str, prefix: str, *, recursive: bool, more: str, after: str = "") -> Page:
        return self._fast.any_page(bucket, prefix, recursive=recursive, more=more, after=after)

    def has_bucket(self, bucket: str) -> bool:
        return self._full.has_bucket(bucket)

    def _uploader(self, bucket: str, key: str) -> Uploader:
        """The engine for a multipart upload; obstore's falls back on s3fs by itself."""
        return self._full if bucket in self._refused or UNFIT.search(key) else self._fast

    def begin_upload(self, bucket: str, key: str) -> str:
        return self._uploader(bucket, key).begin_upload(bucket, key)

    def put_part(self, bucket: str, key: str, upload: str, number: int, data: bytes) -> str:
        return self._uploader(bucket, key).put_part(bucket, key, upload, number, data)

    def complete_upload(self, bucket: str, key: str, upload: str, parts: list[str]) -> str:
        return self._uploader(bucket, key).complete_upload(bucket, key, upload, parts)

    def abort_upload(self, bucket: str, key: str, upload: str) -> None:
        self._uploader(bucket, key).abort_upload(bucket, key, upload)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, str]]:
        return self._full.uploads(bucket, prefix)
