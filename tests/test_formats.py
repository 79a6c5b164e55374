"""Codecs, against the standard library's and zstandard's own decoders."""

from __future__ import annotations

import gzip
import io
from typing import BinaryIO, cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stagger.errors import BadInput
from stagger.formats import Codec, codec_of, compressor, decompressed, extension_of

TEXT = b"".join(b"line %d of a text that compresses\n" % i for i in range(20_000))

CODECS: list[Codec] = ["gzip", "zstd"]


def pack(data: bytes, codec: Codec) -> bytes:
    return gzip.compress(data) if codec == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(data)


def unpack(data: bytes, codec: Codec) -> bytes:
    return gzip.decompress(data) if codec == "gzip" else zstandard.ZstdDecompressor().decompressobj().decompress(data)


def read(data: bytes, codec: Codec | None) -> bytes:
    return decompressed(cast("BinaryIO", io.BytesIO(data)), codec).read()


@pytest.mark.parametrize("codec", CODECS)
@given(chunks=st.lists(st.binary(max_size=3000), max_size=8))
def test_what_is_written_others_can_read(codec: Codec, chunks: list[bytes]) -> None:
    stream = compressor(codec)
    packed = b"".join(map(stream.compress, chunks)) + stream.flush()
    assert unpack(packed, codec) == b"".join(chunks)
    assert read(packed, codec) == b"".join(chunks)


@pytest.mark.parametrize("codec", CODECS)
@given(parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=5))
def test_concatenated_streams_are_one_file(codec: Codec, parts: list[bytes]) -> None:
    assert read(b"".join(pack(part, codec) for part in parts), codec) == b"".join(parts)


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_was_cut_anywhere_is_never_a_short_file(codec: Codec) -> None:
    packed = pack(TEXT, codec)
    for length in [1, 2, 5, 11, *range(20, len(packed), len(packed) // 50), len(packed) - 1]:
        with pytest.raises(BadInput, match=r"truncated|damaged"):
            read(packed[:length], codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_second_stream_that_was_cut_is_noticed(codec: Codec) -> None:
    with pytest.raises(BadInput, match="truncated"):
        read(pack(TEXT, codec) + pack(TEXT, codec)[:-2], codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_wrong_checksum_is_noticed(codec: Codec) -> None:
    packed = bytearray(pack(TEXT, codec))
    packed[-6 if codec == "gzip" else -1] ^= 1
    with pytest.raises(BadInput, match="damaged"):
        read(bytes(packed), codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_is_not_what_its_name_says_is_refused(codec: Codec) -> None:
    with pytest.raises(BadInput, match="damaged"):
        read(TEXT, codec)


def test_gzip_padded_with_zeros_is_whole() -> None:
    assert read(pack(TEXT, "gzip") + bytes(1000), "gzip") == TEXT


@pytest.mark.parametrize("codec", CODECS)
def test_an_empty_file_has_no_content(codec: Codec) -> None:
    assert read(b"", codec) == b""


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_content_gives_the_same_bytes(codec: Codec) -> None:
    def once() -> bytes:
        stream = compressor(codec)
        return stream.compress(TEXT) + stream.flush()

    assert once() == once()


def test_names_stand_for_codecs() -> None:
    assert [codec_of(name) for name in ("a.jsonl", "a.jsonl.gz", "b.zst", "gz")] == [None, "gzip", "zstd", None]
    assert [extension_of(codec) for codec in (None, "gzip", "zstd")] == ["", ".gz", ".zst"]
