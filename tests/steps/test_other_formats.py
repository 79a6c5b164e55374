"""Files that are not what a reader expects: each is refused by its own name, with a way out."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from stagger import BadInput, Document, ReadCsv, ReadJsonl, ReadText
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage

READERS = [ReadJsonl, ReadCsv, ReadText]

LINES = b'{"text": "one"}\n' * 100


def read(reader: Any, folder: Path, name: str, data: bytes, **options: Any) -> list[Document]:
    (folder / name).write_bytes(data)
    step = reader(str(folder / name), **options)
    step.bind(TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag"))
    return list(step(None, 0, 1))


def tar(format_: int, name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(LINES)
        archive.addfile(info, io.BytesIO(LINES))
    return out.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("member", ["a.jsonl", "{a}.jsonl"])
def test_a_tar_archive_is_no_text(tmp_path: Path, reader: Any, format_: int, member: str) -> None:
    data = tar(format_, member)
    old = data.replace(b"ustar", bytes(5))
    files = {"a.tar": data, "a.tar.gz": gzip.compress(data), "a.jsonl.gz": gzip.compress(data), "b.tgz": data}
    files |= {"a.tar.zst": zstandard.compress(data), "a.tar.xz": lzma.compress(data)}
    for name, packed in files.items():
        with pytest.raises(BadInput, match="the file is not text in UTF-8, but a tar archive: unpack it first"):
            read(reader, tmp_path, name, packed)
    assert old != data


def test_an_archive_of_the_first_tar_is_known_by_its_checksum(tmp_path: Path) -> None:
    header = bytearray(tar(tarfile.USTAR_FORMAT, "a.jsonl"))
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(BadInput, match="a tar archive"):
        read(ReadText, tmp_path, "a.txt", bytes(header))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize("codec", [None, "gzip"])
def test_text_in_another_encoding_is_named(
    tmp_path: Path, reader: Any, encoding: str, mark: str, codec: str | None
) -> None:
    text = '{"text": "日本語"}\n' if reader is ReadJsonl else "text,id\n日本語,1\n日本,2\n"
    data = (mark + text).encode(encoding)
    name = encoding.upper().replace("UTF-16-", "UTF-16").replace("UTF-32-", "UTF-32")
    with pytest.raises(BadInput, match=f"but text in {name}: convert it to UTF-8"):
        read(reader, tmp_path, "a.gz" if codec else "a", gzip.compress(data) if codec else data)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named_by_its_line_ends(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(BadInput, match="text in UTF-16"):
        read(ReadText, tmp_path, "a.txt", "漢漢漢\n漢漢\n漢\n".encode(encoding))


def test_zero_bytes_within_text_do_not_make_it_utf_16(tmp_path: Path) -> None:
    assert [document.text for document in read(ReadText, tmp_path, "a.txt", b"ab\0c\nd\0\0e\n")] == ["ab\0c", "d\0\0e"]


def test_a_byte_order_mark_of_utf_8_is_left_out(tmp_path: Path) -> None:
    for reader, data in ((ReadJsonl, b'{"text": "x"}\n'), (ReadCsv, b"text\nx\n"), (ReadText, b"x\n")):
        assert [document.text for document in read(reader, tmp_path, "a", b"\xef\xbb\xbf" + data)] == ["x"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("data", [b'{"text": "one"}\r{"text": "two"}\r', b"text,id\rone,1\rtwo,2", b"text,id\rone,1\r"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_lines_that_end_with_cr_alone_are_named(tmp_path: Path, reader: Any, data: bytes, policy: str) -> None:
    with pytest.raises(BadInput, match="record 1, byte 0: the lines end with CR alone: convert the line ends"):
        read(reader, tmp_path, "a", data, on_bad_record=policy)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return out.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (zipped(), "a zip archive: unpack it first"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (bz2.compress(LINES), "bz2: set compression: bz2"),
        (lzma.compress(LINES), "xz: set compression: xz"),
        (lzma.compress(LINES, lzma.FORMAT_ALONE), "LZMA: set compression: xz"),
        (zstandard.compress(LINES), "zstd: set compression: zstd"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstandard.compress(LINES), "zstd: set compression: zstd"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
    ],
)
def test_another_format_is_named(tmp_path: Path, reader: Any, data: bytes, what: str) -> None:
    with pytest.raises(BadInput, match=f"the file is not text in UTF-8, but {what}"):
        read(reader, tmp_path, "a", data)


@pytest.mark.parametrize("codec", ["gz", "zst", "bz2", "xz"])
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html>\n<title>503</title>", "HTML or XML, perhaps a server's error page: it begins with b'<!DOC"),
        (zipped(), "a zip archive: unpack it first"),
        (LINES, "something else: it begins with b'{"),
        (b"{}", "something else: it begins with b'{}'"),
        (b"a\n", "something else: it begins with b'a"),
    ],
)
def test_a_file_named_after_a_codec_that_it_does_not_have(tmp_path: Path, codec: str, data: bytes, what: str) -> None:
    with pytest.raises(BadInput, match=rf"record 1, byte 0: the file is not \w+, but {what}"):
        read(ReadJsonl, tmp_path, f"a.jsonl.{codec}", data)
