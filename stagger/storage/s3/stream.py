"""Reads one object, or a part of it: resumed where it breaks off, and always of one version."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stagger.errors import BadInput, counted
from stagger.storage.faults import BrokenOff, WrongAnswer
from stagger.storage.retry import Retry, Trial
from stagger.storage.s3.engine import Body, Changed, Engine
from stagger.storage.s3.pace import PACE_BYTES, paced


class Reading:
    """The reading of an object of `size` bytes. `version` is its ETag in the plan; empty if the plan has none."""

    def __init__(self, engine: Engine, bucket: str, key: str, size: int, version: str) -> None:
        self._engine = engine
        self._bucket = bucket
        self._key = key
        self._size = size
        self._version = version
        self._conditional = True  # GETs send If-Match.

    def pieces(
        self, retry: Retry, path: str, span: tuple[int, int] | None = None, waiting: Callable[[], None] = lambda: None
    ) -> Iterator[bytes]:
        """The bytes from the start to the end (exclusive) of `span`; the whole object without one.

        Raises BadInput when the object is not the planned one, what `waiting` raises while a retry is waited for, and
        the last error when the retries are used up.
        """
        trial = Trial(retry, path, waiting)
        offset, end = span or (0, self._size)
        noted = offset
        while offset < end:
            try:
                for chunk in paced(self._open(offset, end).chunks):
                    offset += len(chunk)
                    if offset > end:
                        raise BadInput(f"the store sends more than the {counted(self._size, 'byte')} of the plan")
                    if offset - noted >= PACE_BYTES:
                        trial.progressed()
                        noted = offset
                    yield chunk
                if offset < end:
                    raise BrokenOff(f"{counted(end - offset, 'byte', 'is')} missing")
            except (FileNotFoundError, BadInput):
                raise
            except Changed:
                raise BadInput("the object has been replaced since the plan was made") from None
            except Exception as error:
                trial.failed(error)

    def _open(self, offset: int, end: int) -> Body:
        """The object from `offset` to `end`. Raises Changed when HEAD confirms that it is not the planned version."""
        try:
            body = self._get(offset, end)
        except Changed:
            self._compare()
            self._conditional = False  # The store compares ETags in its own way; theirs are compared here.
            body = self._get(offset, end)
        if body.total not in (-1, self._size) or (self._version and body.version != self._version):
            self._compare()
            raise WrongAnswer(
                f"GET answered with the ETag {body.version or '(none)'} and {counted(body.total, 'byte')}, HEAD and"
                f" the plan with {self._version or '(none)'} and {counted(self._size, 'byte')}"
            )
        self._version = body.version
        return body

    def _get(self, offset: int, end: int) -> Body:
        version = self._version if self._conditional else ""
        return self._engine.get(self._bucket, self._key, offset, None if end == self._size else end, version)

    def _compare(self) -> None:
        """Raise Changed when the object is another than the planned one, by HEAD."""
        found = self._engine.head(self._bucket, self._key)
        if found is None:
            raise FileNotFoundError(self._key)
        if found.size != self._size or (self._version and found.version != self._version):
            raise Changed
