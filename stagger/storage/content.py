"""Whether a file still has the content that a record gives the checksum of. No task imports this."""

from __future__ import annotations

import errno
import hashlib

from stagger.storage import Crc, Entry
from stagger.storage.s3.output import PART_BYTES
from stagger.storage.s3.verify import cut, digest, md5_text, normal
from stagger.storage.storage import Storage


def is_intact(storage: Storage, path: str, entry: Entry, wanted: str) -> bool:
    """Whether the file at `path`, listed as `entry`, has the checksum `wanted`, an `Output.digest`.

    Reads the file, unless the store's ETag shows the checksum. A file that cannot be read to its end is not intact.
    """
    if wanted.startswith("md5:") and normal(entry.version) == f'"{wanted.removeprefix("md5:")}"':
        return True
    try:
        return digest_of(storage, path, entry, wanted) == wanted
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EIO:
            return False
        raise


def digest_of(storage: Storage, path: str, entry: Entry, like: str) -> str:
    """The checksum of a file, of the same kind as `like`."""
    pieces = storage.stream(path, entry.size)
    if not like.startswith("md5:"):
        crc = Crc()
        for piece in pieces:
            crc.add(piece)
        return str(crc)
    if "-" in like:
        return md5_text([digest(part) for part in cut(pieces, PART_BYTES)], whole=False)
    md5 = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        md5.update(piece)
    return md5_text([md5.digest()], whole=True)
