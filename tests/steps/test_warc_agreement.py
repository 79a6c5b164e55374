"""ReadWarc and warcio on generated crawls of odd pages: the same text, but for what storage.md lists."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from warcio.archiveiterator import ArchiveIterator

from tests.steps.test_warc_pages import SKIPPABLE
from tests.steps.warc_files import PACKED, read, response

WORDS = {
    "utf-8": "größer Привет 日本語 naïve —",
    "windows-1251": "Привет мир как дела",
    "koi8-r": "Привет мир как дела",
    "iso-8859-1": "größer naïve déjà vu",
    "shift_jis": "日本語 テスト ページ",
    "gb2312": "中文 网页 测试",
    "euc-kr": "한국어 페이지",
}


@dataclass
class Made:
    """A response, the text that it stands for, and what in it warcio does not read."""

    block: bytes
    text: str
    charset: str
    different: set[str]


def gzip_of(data: bytes) -> bytes:
    return PACKED[".warc.gz"](data)


def halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


def two_members(data: bytes) -> bytes:
    first, second = halves(data)
    return gzip_of(first) + gzip_of(second)


def two_frames(data: bytes) -> bytes:
    first, second = halves(data)
    return SKIPPABLE + zstandard.compress(first) + SKIPPABLE + zstandard.compress(second)


def deflated(data: bytes, wbits: int) -> bytes:
    stream = zlib.compressobj(wbits=wbits)
    return stream.compress(data) + stream.flush()


def chunked(data: bytes, chosen: random.Random) -> bytes:
    body = b""
    while data:
        size = chosen.randint(1, 400)
        body += b"%x\r\n%s\r\n" % (len(data[:size]), data[:size])
        data = data[size:]
    return body + b"0\r\n\r\n"


#: Content coding -> (value of the header, encoder, what in it warcio does not read: storage.md explains it).
CODINGS: dict[str, tuple[str, Callable[[bytes], bytes], set[str]]] = {
    "none": ("", bytes, set()),
    "gzip": ("gzip", gzip_of, set()),
    "upper case": ("GZIP", gzip_of, set()),
    "zlib": ("deflate", lambda data: deflated(data, 15), set()),
    "raw deflate": ("deflate", lambda data: deflated(data, -15), set()),
    "undone gzip": ("gzip", bytes, set()),
    "x-gzip": ("x-gzip", gzip_of, {"x-gzip"}),
    "members": ("gzip", two_members, {"gzip members"}),
    "zstd": ("zstd", zstandard.compress, {"zstd"}),
    "frames": ("zstd", two_frames, {"zstd"}),
    "twice": ("gzip, gzip", lambda data: gzip_of(gzip_of(data)), {"lists of codings"}),
}


def made(chosen: random.Random) -> Made:
    """A response with oddities drawn at random."""
    charset = chosen.choice(list(WORDS))
    line = chosen.choice(["\r\n", "\n"])
    declared = chosen.choice(["header", "header of a text", "early meta", "late meta"])
    said = f"text/{'plain' if declared == 'header of a text' else 'html'}"
    text = ""
    if declared.startswith("header"):
        said += f"; charset={charset}"
    else:
        script = "<script>" + "x=1;" * 800 + "</script>" if declared == "late meta" else ""
        text = f'<html>{line}{script}<meta charset="{charset}">{line}{line}'
    text += (WORDS[charset] + chosen.choice([" ", line, line * 2])) * chosen.randint(1, 30) + "end"
    coding, encode, different = CODINGS[chosen.choice(list(CODINGS))]
    body = encode(text.encode(charset))
    colon = chosen.choice([":", ": ", " : ", ":\t"])
    fields = [f"Content-Type{colon}{chosen.choice([said, f'text/html, {said}'])}", f"Content-Encoding{colon}{coding}"]
    transfer = chosen.choice(["", "chunked", "Chunked", "undone"])
    if transfer:
        fields.append(f"Transfer-Encoding{colon}{'chunked' if transfer == 'undone' else transfer}")
    if transfer in ("chunked", "Chunked"):
        body = chunked(body, chosen)
    if transfer == "Chunked":
        different = {*different, "case of chunked"}
    chosen.shuffle(fields)
    header = line.join([f"HTTP/1.{chosen.randint(0, 1)} 200 OK", "X: y", *fields]) + line
    return Made(header.encode() + chosen.choice([b"\r\n", b"\n"]) + body, text, charset, different)


def by_warcio(data: bytes) -> dict[str, bytes]:
    """The body of each response, by the record's id."""
    return {
        record.rec_headers["WARC-Record-ID"]: record.content_stream().read()
        for record in ArchiveIterator(io.BytesIO(data))
        if record.rec_type == "response"
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_same_text_as_warcio_reads(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    pages = [made(chosen) for _ in range(150)]
    records = [response(index, one.block) for index, one in enumerate(pages)]
    plain = b"".join(records)
    stored = {".warc": plain, **{suffix: b"".join(map(pack, records)) for suffix, pack in PACKED.items()}}
    theirs = by_warcio(plain)
    assert theirs == by_warcio(stored[".warc.gz"])
    for suffix, data in stored.items():
        documents, task = read(tmp_path, data, f"a{suffix}", glob=f"a{suffix}")
        assert (task.left_out, task.bad_records) == ({}, {})
        ours = {document.id: document.text for document in documents}
        assert ours.keys() == theirs.keys()
        for index, one in enumerate(pages):
            id_ = f"<urn:uuid:{index}>"
            assert ours[id_] == one.text
            assert (theirs[id_] == ours[id_].encode(one.charset)) is not bool(one.different), one
