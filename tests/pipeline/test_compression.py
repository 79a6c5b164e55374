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
        "from stagger.task.own_process import peak_rss_mb\n"
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


@pytest.mark.parametrize("piece", [3, 2**20])
@pytest.mark.parametrize("padding", [4, 8, 400_000])
def test_xz_is_padded_with_zeros_between_and_after_streams(padding: int, piece: int) -> None:
    packed = pack(TEXT, "xz") + bytes(padding) + pack(b"end", "xz") + bytes(padding)
    assert read(packed[-(10**6) :] if piece > 3 else packed[: 10**6], "xz", piece) == TEXT + b"end"


def test_xz_padding_of_another_length_is_damage() -> None:
    for packed in (pack(b"a", "xz") + bytes(5), pack(b"a", "xz") + bytes(3) + pack(b"b", "xz")):
        with pytest.raises(BadInput, match=r"the padding after an xz stream is \d bytes, not a multiple of four"):
            read(packed, "xz")


def test_the_older_format_of_lzma_is_read() -> None:
    assert read(lzma.compress(TEXT, lzma.FORMAT_ALONE), "xz") == TEXT


@pytest.mark.parametrize("codec", READ_CODECS)
@pytest.mark.parametrize("rest", [b"\n", b"x" * 100, b"<html>"])
def test_other_bytes_after_a_stream_are_named(codec: ReadCodec, rest: bytes) -> None:
    few = codec == "gzip" and len(rest) < 10  # Its reader cannot distinguish them from a header that breaks off.
    message = f"or ends with a few bytes that are not {codec}" if few else f"the file has bytes that are not {codec}"
    with pytest.raises(BadInput, match=message):
        read(pack(TEXT, codec) + rest, codec)


def test_zstd_that_needs_a_dictionary_is_named() -> None:
    dictionary = zstandard.train_dictionary(2000, [b"line %d of a text" % number for number in range(5000)])
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    with pytest.raises(BadInput, match=rf"the zstd dictionary {dictionary.dict_id()}; dictionaries are not supported"):
        read(packed, "zstd")
    nameless = zstandard.ZstdCompressor(dict_data=dictionary, write_dict_id=False).compress(b"line 7 of a text")
    with pytest.raises(BadInput, match="damaged, or was compressed with a dictionary"):
        read(nameless, "zstd")


def test_a_zstd_frame_with_too_large_a_window_is_named() -> None:
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(32 - 10) << 3])
    with pytest.raises(BadInput, match="the zstd frame needs more than 2,147,483,648 bytes of memory"):
        read(header + bytes(20), "zstd")


@pytest.mark.parametrize("piece", [1, 7, 2**20])
def test_zstd_frames_to_skip_and_blocks_of_any_size(piece: int) -> None:
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    parts = [b"a", b"bc" * 50, b"", b"x" * 300_000, bytes(range(256)) * 5]
    blocks = b"".join(stream.compress(part) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for part in parts)
    frame = blocks + stream.flush()
    skip = b"\x5f\x2a\x4d\x18\x05\0\0\0\x28\xb5\x2f\xfd!"
    assert read(skip + frame + skip + frame + skip, "zstd", piece) == b"".join(parts) * 2
    for cut in (1, 3, 4, 7, len(skip) - 1):
        with pytest.raises(BadInput, match="truncated"):
            read(frame + skip[:cut], "zstd", piece)
