"""Codecs, compared with the standard library's and zstandard's own decoders."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stagger.errors import BadInput
from stagger.pipeline.compression import Codec, ReadCodec, buffered, codec_of, compressor, extension_of
from stagger.pipeline.decompression import decompressed

TEXT = b"".join(b"line %d of a text that compresses\n" % i for i in range(20_000))

CODECS: list[Codec] = ["gzip", "zstd"]

READ_CODECS: list[ReadCodec] = ["gzip", "zstd", "bz2", "xz"]


def pack(data: bytes, codec: ReadCodec) -> bytes:
    if codec == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    if codec == "xz":
        return lzma.compress(data)
    return gzip.compress(data) if codec == "gzip" else bz2.compress(data)


def unpack(data: bytes, codec: Codec) -> bytes:
    return gzip.decompress(data) if codec == "gzip" else zstandard.ZstdDecompressor().decompressobj().decompress(data)


def read(data: bytes, codec: ReadCodec, piece: int = 2**20) -> bytes:
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    return buffered(decompressed(pieces, codec)).read()


@pytest.mark.parametrize("codec", CODECS)
@given(chunks=st.lists(st.binary(max_size=3000), max_size=8))
def test_what_is_written_others_can_read(codec: Codec, chunks: list[bytes]) -> None:
    stream = compressor(codec)
    packed = b"".join(map(stream.compress, chunks)) + stream.flush()
    assert unpack(packed, codec) == b"".join(chunks)
    assert read(packed, codec) == b"".join(chunks)


@pytest.mark.parametrize("codec", READ_CODECS)
@given(parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=5))
def test_concatenated_streams_are_one_file(codec: ReadCodec, parts: list[bytes]) -> None:
    packed = b"".join(pack(part, codec) for part in parts)
    assert read(packed, codec) == read(packed, codec, piece=7) == b"".join(parts)


@pytest.mark.parametrize("codec", READ_CODECS)
def test_a_file_that_was_cut_anywhere_is_never_a_short_file(codec: ReadCodec) -> None:
    packed = pack(TEXT, codec)
    for length in [1, 2, 5, 11, *range(20, len(packed), len(packed) // 50), len(packed) - 1]:
        with pytest.raises(BadInput, match=r"truncated|damaged"):
            read(packed[:length], codec)


@pytest.mark.parametrize("codec", READ_CODECS)
def test_a_second_stream_that_was_cut_is_noticed(codec: ReadCodec) -> None:
    with pytest.raises(BadInput, match="truncated"):
        read(pack(TEXT, codec) + pack(TEXT, codec)[:-2], codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_wrong_checksum_is_noticed(codec: Codec) -> None:
    packed = bytearray(pack(TEXT, codec))
    packed[-6 if codec == "gzip" else -1] ^= 1
    with pytest.raises(BadInput, match="damaged"):
        read(bytes(packed), codec)


@pytest.mark.parametrize("codec", READ_CODECS)
def test_a_file_that_is_not_what_its_name_says_is_refused(codec: ReadCodec) -> None:
    with pytest.raises(BadInput, match=rf"the file is not {codec}, but something else: it begins with b'line 0"):
        read(TEXT, codec)


@pytest.mark.parametrize("codec", READ_CODECS)
@pytest.mark.parametrize("piece", [11, 4096, 2**20])
def test_many_streams_and_much_expansion(codec: ReadCodec, piece: int) -> None:
    parts = [bytes(3_000_000), b"", b"x" * 5000, TEXT, bytes(70_000), b"end"]
    assert read(b"".join(pack(part, codec) for part in parts), codec, piece) == b"".join(parts)


@pytest.mark.parametrize("codec", ["zstd", "bz2", "xz"])
def test_what_expands_by_thousands_does_not_fill_the_memory(codec: ReadCodec) -> None:
    """A separate process reads 400 MB of zeros, compressed to a few KB."""
    code = (
        "import sys; from tests.pipeline.test_compression import pack\n"
        "from stagger.pipeline.compression import buffered\n"
        "from stagger.pipeline.decompression import decompressed\n"
        "from stagger.task.attempt import peak_rss_mb\n"
        "codec = sys.argv[1]; packed = b''.join([pack(bytes(20_000_000), codec)] * 20)\n"
        "before, size, stream = peak_rss_mb(), 0, buffered(decompressed(iter([packed]), codec))\n"
        "while data := stream.read1(2**20): size += len(data)\n"
        "assert size == 400_000_000, size; print(peak_rss_mb() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, codec], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 150


def test_frames_with_a_long_window_are_read() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert read(packed.compress(TEXT) + packed.flush(), "zstd") == TEXT


def test_gzip_padded_with_zeros_is_whole() -> None:
    assert read(pack(TEXT, "gzip") + bytes(1000), "gzip") == TEXT


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", bytes(5000)])
def test_a_file_without_any_stream_is_refused_and_not_empty(codec: Codec, data: bytes) -> None:
    with pytest.raises(BadInput, match=rf"truncated|the file is not {codec}, but something else"):
        read(data, codec)


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_without_content_is_an_empty_file(codec: Codec) -> None:
    assert read(pack(b"", codec), codec) == b""


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_content_gives_the_same_bytes(codec: Codec) -> None:
    def once() -> bytes:
        stream = compressor(codec)
        return stream.compress(TEXT) + stream.flush()

    assert once() == once()


def test_names_stand_for_codecs() -> None:
    names = ("a.jsonl", "a.jsonl.gz", "b.zst", "gz", "A.GZ", "c.bz2", "d.xz")
    assert [codec_of(name) for name in names] == [None, "gzip", "zstd", None, "gzip", "bz2", "xz"]
    assert [extension_of(codec) for codec in (None, "gzip", "zstd")] == ["", ".gz", ".zst"]
