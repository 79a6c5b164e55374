"""The dictionary that a .zst file brings along in its first frame.

Crawlers write such .warc.zst files (https://iipc.github.io/warc-specifications/specifications/warc-zstd/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stagger.errors import BadInput, counted

#: The first bytes of a skippable frame with a dictionary, of a dictionary, and of one that is compressed.
FRAME = b"\x5d\x2a\x4d\x18"
DICTIONARY = b"\x37\xa4\x30\xec"
COMPRESSED = b"\x28\xb5\x2f\xfd"

#: Maximum size in bytes of a dictionary. The specification requires 8 MiB of every reader.
MAX_BYTES = 2**27


def dictionary_of(pieces: Iterator[bytes]) -> tuple[bytes, Any]:
    """The first piece of a file, and the dictionary in it (a ZstdCompressionDict), or None.

    The piece contains the whole frame of the dictionary. Raises BadInput for a dictionary that cannot be used.
    """
    start = _gathered(b"", 8, pieces)
    if not start.startswith(FRAME):
        return start, None
    end = 8 + int.from_bytes(start[4:8], "little")
    if end > MAX_BYTES:
        raise BadInput(f"its zstd dictionary has {counted(end - 8, 'byte')}; at most {MAX_BYTES:,} are supported")
    start = _gathered(start, end, pieces)
    if len(start) < end:
        raise BadInput("the zstd dictionary in its first frame breaks off: the file is truncated")
    return start, _loaded(start[8:end])


def _gathered(data: bytes, size: int, pieces: Iterator[bytes]) -> bytes:
    """`data` and as many pieces as `size` bytes need."""
    gathered = [data]
    left = size - len(data)
    while left > 0 and (piece := next(pieces, b"")):
        gathered.append(piece)
        left -= len(piece)
    return b"".join(gathered)


def _loaded(data: bytes) -> Any:
    import zstandard

    if data.startswith(COMPRESSED):
        try:
            data = zstandard.ZstdDecompressor().decompress(data, MAX_BYTES, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise BadInput(f"the zstd dictionary in its first frame cannot be decompressed: {error}") from error
    if not data.startswith(DICTIONARY):
        return None
    return zstandard.ZstdCompressionDict(data, zstandard.DICT_TYPE_FULLDICT)
