"""Reading WARC files: compared with warcio on the same files, and with every kind of damage."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from stagger import BadInput, Document, ReadWarc, StaggerError
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.conftest import Cli, read_jsonl

HTML = "<html><body>ein Text, größer als nichts</body></html>"


def record(
    index: int,
    body: bytes = HTML.encode(),
    http: str = "Content-Type: text/html; charset=utf-8",
    kind: str = "response",
    more: str = "",
    length: Any = None,
    end: bytes = b"\r\n\r\n",
) -> bytes:
    """The bytes of a record; `length` and `end` may be wrong."""
    block = f"HTTP/1.1 200 OK\r\n{http}\r\n\r\n".encode() + body
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{index}>\r\n"
        f"WARC-Date: 2024-01-01T00:00:0{index % 10}Z\r\nWARC-Target-URI: http://a.example/{index}\r\n"
        f"Content-Type: application/http; msgtype={kind}\r\n{more}"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return header.encode() + block + end


def bound(folder: Path, **options: Any) -> tuple[ReadWarc, TaskContext]:
    step = ReadWarc(str(folder), **options)
    task = TaskContext(Storage(), 0, 1, step.find_shards(Storage()), "tag")
    step.bind(task)
    return step, task


def read(folder: Path, data: bytes | None = None, name: str = "a.warc", **options: Any) -> list[Document]:
    if data is not None:
        (folder / name).write_bytes(data)
    return list(bound(folder, **options)[0](None, 0, 1))


def texts(folder: Path, *records: bytes, **options: Any) -> list[str]:
    return [document.text for document in read(folder, b"".join(records), **options)]


def test_what_a_document_is_made_of(tmp_path: Path) -> None:
    data = (
        record(0, kind="request") + record(1) + record(2, kind="metadata") + record(3, http="content-type: TEXT/html")
    )
    page = {"url": "http://a.example/1", "date": "2024-01-01T00:00:01Z", "content_type": "text/html", "status": 200}
    assert read(tmp_path, data) == [
        Document(HTML, "<urn:uuid:1>", [], page),
        Document(HTML, "<urn:uuid:3>", [], {**page, "url": "http://a.example/3", "date": "2024-01-01T00:00:03Z"}),
    ]


def test_each_document_knows_its_place_among_all_records(tmp_path: Path) -> None:
    documents = read(tmp_path, record(0, kind="request") + record(1), add_source=True)
    assert documents[0].metadata["position"] == 1


def test_the_texts_of_wet_files(tmp_path: Path) -> None:
    block = "Überschrift\nText\n".encode()
    header = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: <http://a.example/>\r\n"
        "WARC-Date: 2024-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:7>\r\nContent-Type: text/plain\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    (document,) = read(tmp_path, header.encode() + block + b"\r\n\r\n", "a.warc.wet")
    metadata = {"url": "http://a.example/", "date": "2024-01-01T00:00:00Z", "content_type": "text/plain"}
    assert document == Document("Überschrift\nText\n", "<urn:uuid:7>", [], metadata)


def warcio_file(bodies: list[bytes], codec: str = "gzip") -> bytes:
    """A file that warcio writes: a request, a response and its metadata for each body."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=codec == "gzip")
    writer.write_record(writer.create_warcinfo_record("a.warc.gz", {"software": "a test"}))
    for index, body in enumerate(bodies):
        url = f"http://a.example/{index}"
        request = StatusAndHeaders("GET / HTTP/1.1", [("Host", "a.example")], is_http_request=True)
        writer.write_record(writer.create_warc_record(url, "request", http_headers=request, payload=io.BytesIO()))
        headers = [("Content-Type", "text/html"), ("X-Long", "x" * (index * 97 % 3000))]
        response = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.0")
        writer.write_record(writer.create_warc_record(url, "response", http_headers=response, payload=io.BytesIO(body)))
    data = out.getvalue()
    return zstandard.compress(data) if codec == "zstd" else data


def plain(body: bytes) -> str:
    """A body's text, without its byte order mark."""
    for mark, charset in ((BOM_UTF8, "utf-8"), (BOM_UTF16_LE, "utf-16-le"), (BOM_UTF16_BE, "utf-16-be")):
        if body.startswith(mark):
            return body.removeprefix(mark).decode(charset, "replace")
    return body.decode("utf-8", "replace")


@given(bodies=st.lists(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode)), max_size=6))
@example(bodies=[b"WARC/1.0\r\n", b"\r\n\r\n", b"\r", b"\n"])
@example(bodies=[BOM_UTF8, BOM_UTF8 + b" ", BOM_UTF8 + b"a", BOM_UTF16_LE, BOM_UTF16_BE + b"\0 "])
@settings(max_examples=60, deadline=None)
def test_the_same_as_warcio(tmp_path_factory: pytest.TempPathFactory, bodies: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("warc")
    for name, codec in (("a.warc.gz", "gzip"), ("a.warc", ""), ("a.warc.zst", "zstd")):
        data = warcio_file(bodies, codec)
        documents = read(folder, data, name, glob=name)
        theirs = []
        for one in ArchiveIterator(io.BytesIO(zstandard.decompress(data) if codec == "zstd" else data)):
            if one.rec_type == "response":
                body = one.content_stream().read()
                theirs.append((one.rec_headers["WARC-Record-ID"], one.rec_headers["WARC-Target-URI"], body))
        assert [body for _, _, body in theirs] == bodies
        has_text = [(id_, url, body) for id_, url, body in theirs if not plain(body).isspace()]
        ours = {document.id: document for document in documents}
        for id_, url, body in has_text:
            if not plain(body):
                assert id_ not in ours
                continue
            document = ours[id_]
            assert document.metadata["url"] == url
            try:
                assert document.text == body.decode("utf-8-sig") or body[:2] in (b"\xff\xfe", b"\xfe\xff")
            except UnicodeDecodeError:
                assert document.text


def chunked(body: bytes, size: int = 7, end: bytes = b"0\r\n\r\n") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x; a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


PAGE = HTML.encode() + b"".join(b"<p>%d</p>" % (i * i * i) for i in range(20_000))

ENCODED = {
    "chunked": ("Transfer-Encoding: chunked", chunked(PAGE)),
    "chunked, with a trailer": ("transfer-encoding: Chunked", chunked(PAGE, 1000, b"0\r\nX: y\r\n\r\n")),
    "gzip": ("Content-Encoding: gzip", gzip.compress(PAGE)),
    "two members": ("Content-Encoding: x-gzip", gzip.compress(PAGE[:100]) + gzip.compress(PAGE[100:])),
    "deflate": ("Content-Encoding: deflate", zlib.compress(PAGE)),
    "raw deflate": ("Content-Encoding: deflate", raw_deflate(PAGE)),
    "zstd": ("Content-Encoding: zstd", zstandard.compress(PAGE)),
    "chunked gzip": ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", chunked(gzip.compress(PAGE))),
    "gzip as a transfer encoding": ("Transfer-Encoding: gzip,\r\n chunked", chunked(gzip.compress(PAGE))),
    "gzip twice": ("Content-Encoding: gzip, gzip", gzip.compress(gzip.compress(PAGE))),
    "identity": ("Content-Encoding: identity", PAGE),
    "no encoding at all": ("Content-Encoding: utf-8", PAGE),
    **{
        f"{name}, but undone": (header, PAGE)
        for name, header in {
            "chunked": "Transfer-Encoding: chunked",
            "gzip": "Content-Encoding: gzip",
            "deflate": "Content-Encoding: deflate",
            "zstd": "Content-Encoding: zstd",
            "brotli": "Content-Encoding: br",
        }.items()
    },
}


@pytest.mark.parametrize("name", ENCODED)
def test_encodings_are_undone(tmp_path: Path, name: str) -> None:
    header, body = ENCODED[name]
    encoded = record(1, body, f"Content-Type: text/html; charset=utf-8\r\n{header}")
    assert texts(tmp_path, record(0), encoded, record(2)) == [HTML, PAGE.decode(), HTML]


def test_brotli_is_undone(tmp_path: Path) -> None:
    stream_io = pytest.importorskip("fastwarc.stream_io")
    out = io.BytesIO()
    writer = stream_io.BrotliWriter(out)
    writer.write(PAGE)
    writer.close()
    http = "Content-Type: text/html; charset=utf-8\r\nContent-Encoding: br"
    assert texts(tmp_path, record(1, out.getvalue(), http)) == [PAGE.decode()]
    with pytest.raises(BadInput, match="record 1, byte 0: the body breaks off: its br encoding has no end"):
        texts(tmp_path, record(1, out.getvalue()[:-5], http))


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ("Transfer-Encoding: chunked", chunked(PAGE)[:-9], "breaks off: its chunked"),
        (
            "Transfer-Encoding: chunked",
            chunked(PAGE, 1000, b"0\r\n\r\n").replace(b"3e8", b"3e9"),
            "no chunk ends at its byte 1011",
        ),
        ("Content-Encoding: gzip", gzip.compress(PAGE)[:-9], "breaks off: its gzip"),
        ("Content-Encoding: gzip", gzip.compress(PAGE)[:-8] + b"a" * 8, "cannot be decoded as gzip: "),
        ("Content-Encoding: deflate", zlib.compress(PAGE)[:-9], "breaks off: its deflate"),
        ("Content-Encoding: zstd", zstandard.compress(PAGE)[:-9], "breaks off: its zstd"),
    ],
)
def test_a_body_that_breaks_off_is_a_bad_record(tmp_path: Path, header: str, body: bytes, message: str) -> None:
    http = f"Content-Type: text/html; charset=utf-8\r\n{header}"
    data = record(0) + record(1, body, http) + record(2)
    with pytest.raises(BadInput, match=f"a\\.warc, record 2, byte {len(record(0))}: the body .*{message}"):
        read(tmp_path, data)
    step, task = bound(tmp_path, on_bad_record="skip")
    assert [document.id for document in step(None, 0, 1)] == ["<urn:uuid:0>", "<urn:uuid:2>"]
    assert task.bad_records == {"encoding": 1}
    assert (task.bad_examples[0]["record"], task.bad_examples[0]["byte"]) == (2, len(record(0)))
    if "breaks off" in message:
        truncated = record(1, body, http, more="WARC-Truncated: length\r\n")
        (text,) = texts(tmp_path, truncated)
        assert text
        assert PAGE.decode().startswith(text)


@pytest.mark.parametrize(
    ("body", "http", "text"),
    [
        ("Grün".encode("latin-1"), "charset=ISO-8859-1", "Grün"),
        (b"\x93quoted\x94", "charset=iso-8859-1", "“quoted”"),
        ("Привет".encode("koi8-r"), 'charset="KOI8-R"', "Привет"),
        ("Привет, мир".encode("cp1251"), "charset='windows-1251' ; x=y", "Привет, мир"),
        ("日本語".encode("cp932"), "charset=x-sjis", "日本語"),
        ("한국어".encode("cp949"), "charset=ks_c_5601-1987", "한국어"),
        ("中文網頁".encode("big5"), "charset=Big5", "中文網頁"),
        ("中文镕".encode("gbk"), "charset=gb2312", "中文镕"),
        (b'<meta charset="koi8-r">' + "Привет".encode("koi8-r"), "", '<meta charset="koi8-r">Привет'),
        (
            b"<META http-equiv=content-type content='text/html; charset=cp1251'>" + "Мир".encode("cp1251"),
            "",
            "<META http-equiv=content-type content='text/html; charset=cp1251'>Мир",
        ),
        (b'<?xml version="1.0" encoding="latin1"?>\xe9', "", '<?xml version="1.0" encoding="latin1"?>é'),
        (b'<meta charset="utf-16">\xc3\xa9', "", '<meta charset="utf-16">é'),
        ("é".encode(), "", "é"),
        ("é <meta charset=latin1>".encode("latin-1"), "charset=utf-8", "é <meta charset=latin1>"),
        ("\ufeffé".encode(), "charset=latin1", "é"),
        ("é日".encode("utf-16"), "charset=latin1", "é日"),
        ("é".encode(), "charset=no-such-charset", "é"),
        *[
            ("é".encode(), f"charset={name}", "é")
            for name in ("base64", "rot13", "unicode_escape", "\x00", "é", "utf-7")
        ],
        ("déjà vu, à la carte".encode("latin-1"), "", "déjà vu, à la carte"),
        ("日本語日本".encode()[:-1], "", "日本語日\ufffd"),
        (b"\x81\x8d", "", "\ufffd\ufffd"),
        ("日本".encode("shift_jis") + b"\x81", "charset=shift_jis", "日本\ufffd"),
    ],
)
def test_charsets(tmp_path: Path, body: bytes, http: str, text: str) -> None:
    (found,) = texts(tmp_path, record(0, body, f"Content-Type: text/html; {http}"))
    assert found == text


@given(body=st.binary(min_size=1, max_size=300), charset=st.text(st.characters(codec="ascii"), max_size=12))
@settings(max_examples=150, deadline=None)
def test_no_body_and_no_charset_stops_the_reader(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, charset: str
) -> None:
    charset = charset.replace("\r", "").replace("\n", "")
    data = record(0, body, f"Content-Type: text/html; charset={charset}") + record(1)
    assert read(tmp_path_factory.mktemp("warc"), data)[-1].id == "<urn:uuid:1>"


def test_which_content_types_are_read(tmp_path: Path) -> None:
    types = [
        "text/html",
        "application/xhtml+xml; charset=utf-8",
        "text/plain",
        "text/css",
        "image/png",
        "",
        "application/pdf",
    ]
    data = b"".join(record(i, http=f"Content-Type: {name}" if name else "X: y") for i, name in enumerate(types))
    data += record(7, http="Content-Type: image/png", more="WARC-Identified-Payload-Type: text/html\r\n")
    data += record(8, more="WARC-Identified-Payload-Type: application/pdf\r\n") + record(9, b"\x89PNG", http="X: y")

    def ids(**options: Any) -> list[int]:
        return [int(document.id[10:-1]) for document in read(tmp_path, data, **options)]

    assert ids() == [0, 1, 2, 5, 7]
    assert ids(content_types=["text/*"]) == [0, 2, 3, 5, 7]
    assert ids(content_types=["Application/PDF"]) == [6, 8]


def test_records_without_a_text_are_left_out(tmp_path: Path) -> None:
    assert texts(tmp_path, record(0), record(1, b""), record(2, b" \n\t"), record(3)) == [HTML, HTML]


def test_large_bodies_can_be_left_out(tmp_path: Path) -> None:
    bomb = record(1, gzip.compress(bytes(10**7)), "Content-Type: text/html\r\nContent-Encoding: gzip")
    huge = record(2, b"x" * 3 * 10**6)
    assert texts(tmp_path, record(0), bomb, huge, record(3, b"x" * 1001), record(4), max_body_bytes=1000) == [HTML] * 2
    with pytest.raises(StaggerError, match="max_body_bytes is 0; give the size"):
        ReadWarc(str(tmp_path), max_body_bytes=0)


RECORDS = [record(0), record(1, kind="request"), record(2), record(3, kind="metadata")]


@pytest.mark.parametrize("last", [3, 4])
def test_a_plain_file_that_was_cut_anywhere_within_a_record_is_noticed(tmp_path: Path, last: int) -> None:
    data = b"".join(RECORDS[:last])
    whole = {sum(map(len, RECORDS[:count])) for count in range(last + 1)}
    for length in range(1, len(data)):
        if length in whole:
            continue
        with pytest.raises(BadInput, match=r"a\.warc, record \d, byte \d+: .*truncated"):
            read(tmp_path, data[:length])
    assert len(read(tmp_path, data)) == 2


def test_a_gzip_file_that_was_cut_anywhere_within_a_record_is_noticed(tmp_path: Path) -> None:
    members = [gzip.compress(one) for one in RECORDS]
    data = b"".join(members)
    whole = {sum(map(len, members[:count])) for count in range(5)}
    for length in range(1, len(data)):
        if length in whole:
            continue
        with pytest.raises(BadInput, match=r"a\.warc\.gz, record \d, byte \d+: .*truncated"):
            read(tmp_path, data[:length], "a.warc.gz")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_that_was_cut_between_records_after_the_plan_is_noticed(tmp_path: Path, suffix: str) -> None:
    parts = [gzip.compress(one) if suffix else one for one in RECORDS]
    path = tmp_path / f"a.warc{suffix}"
    path.write_bytes(b"".join(parts))
    step, _ = bound(tmp_path)
    path.write_bytes(b"".join(parts[:2]))
    with pytest.raises(BadInput, match=r"has changed: [\d,]+ bytes now, [\d,]+ when the plan was made"):
        list(step(None, 0, 1))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_in_a_gzip_file_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    packed = bytearray(b"".join(gzip.compress(one, mtime=0) for one in RECORDS))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("warc")
    try:
        documents = read(folder, bytes(packed), "a.warc.gz")
    except BadInput:
        return
    assert [document.text for document in documents] == [HTML, HTML]  # The bit is in an unused part of gzip's header.


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (b"garbage\r\n" + RECORDS[2], "expected a record, found b'garbage"),
        (bytes(100) + RECORDS[2], r"expected a record, found b'\\x00"),
        (RECORDS[2].replace(b"WARC/1.0", b"WARK/1.0"), "expected a record, found b'WARK/1.0"),
        (record(2, length=50) + RECORDS[2], "expected a record, found"),
        (record(2, length=len(HTML) + 200), "expected a record, found"),
        (record(2, length=10**9), r"only \d+ of the 1,000,000,000 bytes of the record's content are there"),
        (record(2, length="many"), "the Content-Length is b'many'"),
        (record(2, length=-1), "the Content-Length is b'-1'"),
        (record(2).replace(b"Content-Length", b"Content-Width"), "there is no Content-Length"),
        (record(2).replace(b"\r\n", b"\n"), "first line does not end with CRLF"),
        (record(2, more="X: y\r\n" * 2000), "there is no Content-Length"),
    ],
)
@pytest.mark.parametrize("skip", ["skip", "fail"])
def test_garbage_and_wrong_lengths_are_noticed(tmp_path: Path, middle: bytes, message: str, skip: str) -> None:
    with pytest.raises(BadInput, match=rf"a\.warc, record \d, byte \d+: .*{message}"):
        read(tmp_path, RECORDS[0] + middle + RECORDS[0], on_bad_record=skip)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"record 1, byte 0: expected a record, found .*not a WARC file"):
        read(tmp_path, b"<html>\n" * 100)


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n\r\n\r\n", b"\n\n"])
def test_missing_and_additional_lines_between_records_lose_nothing(tmp_path: Path, end: bytes) -> None:
    assert texts(tmp_path, record(0, end=end), record(1)) == [HTML, HTML]


def test_a_header_that_goes_on_in_the_next_line_is_a_bad_record(tmp_path: Path) -> None:
    folded = record(1).replace(b"WARC-Target-URI: ", b"WARC-Target-URI:\r\n ")
    with pytest.raises(BadInput, match=f"record 2, byte {len(record(0))}: a line of the record's header continues"):
        texts(tmp_path, record(0), folded)


def test_a_record_without_id_gets_one(tmp_path: Path) -> None:
    data = record(0) + record(1).replace(b"WARC-Record-ID: <urn:uuid:1>\r\n", b"")
    assert [document.id for document in read(tmp_path, data)] == ["<urn:uuid:0>", "a.warc/1"]


def test_the_ready_pipeline_writes_one_output_for_each_file(cli: Cli, tmp_path: Path) -> None:
    for day in ("mon", "tue"):
        (tmp_path / "crawl" / day).mkdir(parents=True)
        packed = b"".join(gzip.compress(record(index)) for index in range(20))
        (tmp_path / "crawl" / day / "a.warc.gz").write_bytes(packed)
    folders = {name: str(tmp_path / name.lower()) for name in ("OUTPUT", "RUN_DIR")}
    cli.env.update(folders, INPUT=str(tmp_path / "crawl"))
    cli("launch", "warc_to_jsonl", "--executor", "local", "--tasks", 2, check=0)
    for day in ("mon", "tue"):
        written = read_jsonl(tmp_path / "output" / day / "a.jsonl.zst")
        assert [document["text"] for document in written] == [HTML] * 20
