"""Whether a store holds what was sent to it, by the ETag that it answers: an MD5, on most stores.

An answer costs no further request as long as its ETag is the expected one. Only otherwise the store is asked with a
HEAD, and once for each bucket with a GET, because the ETags of some stores are no MD5s (SSE-KMS, directory buckets,
some gateways).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from stagger.errors import counted
from stagger.storage.faults import NotKept
from stagger.storage.s3.engine import Engine
from stagger.storage.s3.pace import paced

#: An ETag that is an MD5, and one that is the MD5 of the MD5s of an upload's parts.
MD5 = re.compile(r'"[0-9a-f]{32}"')
MD5_OF_PARTS = re.compile(r'"[0-9a-f]{32}-\d+"')


def digest(*pieces: bytes) -> bytes:
    """The MD5 of the pieces, joined."""
    whole = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        whole.update(piece)
    return whole.digest()


def md5_text(parts: Sequence[bytes], *, whole: bool) -> str:
    """The checksum of an object, as records keep it: its usual ETag. `parts` are the digests of its parts.

    `whole` tells that one PUT wrote it, not an upload.
    """
    return f"md5:{parts[0].hex()}" if whole else f"md5:{digest(b''.join(parts)).hex()}-{len(parts)}"


class Verifier:
    """Checks what an engine has written, and keeps what it learns of each bucket's ETags."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._md5s: set[str] = set()  # Buckets with an ETag that was the expected MD5.
        self._others: set[str] = set()  # Buckets with an ETag that was not, of an object that was there whole.

    def check_put(self, bucket: str, key: str, etag: str, data: bytes, part: bytes) -> str:
        """The ETag of the object that was to hold `data`, whose digest is `part`.

        Raises NotKept when the store does not hold it.
        """
        return self._check(bucket, key, etag, f'"{part.hex()}"', MD5, (len(data), [part], len(data)))

    def check_part(self, bucket: str, etag: str, part: bytes) -> None:
        """Raise NotKept when the ETag shows that the store did not receive the part with the digest `part`."""
        if normal(etag) == f'"{part.hex()}"':
            self._md5s.add(bucket)
        elif self._is_damage(bucket, etag, MD5):
            raise NotKept(
                f"the store answered a part with the ETag {etag}, but the MD5 of what was sent is {part.hex()}"
            )

    def check_upload(self, bucket: str, key: str, etag: str, size: int, parts: Sequence[bytes], part_bytes: int) -> str:
        """The ETag of the object that was uploaded in parts of `part_bytes` with the digests `parts`."""
        wanted = f'"{digest(b"".join(parts)).hex()}-{len(parts)}"'
        return self._check(bucket, key, etag, wanted, MD5_OF_PARTS, (size, parts, part_bytes))

    def own(self, bucket: str, key: str, data: bytes) -> str:
        """The ETag of an object that is `data` by its size and MD5; empty if it is not."""
        found = self._engine.head(bucket, key)
        same = found is not None and found.size == len(data) and normal(found.version) == f'"{digest(data).hex()}"'
        return found.version if found is not None and same else ""

    def _check(
        self,
        bucket: str,
        key: str,
        etag: str,
        wanted: str,
        form: re.Pattern[str],
        sent: tuple[int, Sequence[bytes], int],
    ) -> str:
        if normal(etag) == wanted:
            self._md5s.add(bucket)
            return etag
        if self._is_damage(bucket, etag, form):
            raise NotKept(f"the store answered with the ETag {etag}, but that of what was sent is {wanted}", etag)
        size, parts, part_bytes = sent
        found = self._engine.head(bucket, key)
        if found is None:
            raise NotKept("the store accepted the object, but does not have it")
        if found.size != size:
            kept = counted(found.size, "byte")
            raise NotKept(f"the store holds {kept} of the {size:,} that were sent", found.version)
        if etag and found.version != etag:
            raise NotKept(f"the store answered with the ETag {etag}, but holds an object with {found.version}", etag)
        if normal(found.version) == wanted:
            return found.version
        if form.fullmatch(normal(found.version)) and not self._has_other_etags(bucket):
            if bucket in self._md5s or not self._same_content(bucket, key, parts, part_bytes):
                raise NotKept(f"the store holds {found.version}, but {wanted} was sent", found.version)
            self._others.add(bucket)
        return found.version

    def _has_other_etags(self, bucket: str) -> bool:
        return bucket in self._others or bucket in self._engine.keyed

    def _is_damage(self, bucket: str, etag: str, form: re.Pattern[str]) -> bool:
        """Whether an ETag that is not the expected one shows damage: it is an MD5, in a bucket whose ETags are."""
        known = bucket in self._md5s and not self._has_other_etags(bucket)
        return known and form.fullmatch(normal(etag)) is not None

    def _same_content(self, bucket: str, key: str, parts: Sequence[bytes], part_bytes: int) -> bool:
        chunks = paced(self._engine.get(bucket, key, 0, None, "").chunks)
        return [digest(part) for part in cut(chunks, part_bytes)] == list(parts)


def normal(etag: str) -> str:
    """An ETag to compare: some stores write MD5s in capitals, and mark ETags as weak."""
    return etag.removeprefix("W/").lower()


def cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The bytes of `chunks` in parts of `size`; the last one may be shorter, and is empty if there are no bytes.

    >>> list(cut([b"abc", b"defg"], 3)), list(cut([], 0))
    ([b'abc', b'def', b'g'], [b''])
    """
    held = bytearray()
    sent = False
    for chunk in chunks:
        held += chunk
        while len(held) >= size > 0:
            yield bytes(held[:size])
            del held[:size]
            sent = True
    if held or not sent:
        yield bytes(held)
