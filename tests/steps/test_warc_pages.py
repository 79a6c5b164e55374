"""Pages as servers send them and crawlers keep them: odd headers, encodings and charsets, and what is left out."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib
from pathlib import Path
from signal import SIGTERM

import pytest
import zstandard

from stagger import BadInput
from stagger.errors import Interrupted
from tests.conftest import Cli
from tests.steps.warc_files import PAGE, bound, page, read, response, texts

HTML = b"<html>\r\n<title>T</title>\r\n\r\n</html>\n\nend"


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
@pytest.mark.parametrize("empty_line", ["\r\n", "\n"])
@pytest.mark.parametrize("fields", [["Content-Type: text/html"], ["X: y", "Content-Type: text/html; charset=koi8-r"]])
def test_a_header_ends_at_its_first_empty_line_of_either_kind(
    tmp_path: Path, line_end: str, empty_line: str, fields: list[str]
) -> None:
    header = line_end.join(["HTTP/1.1 200 OK", *fields]) + line_end + empty_line
    assert texts(tmp_path, response(0, header.encode() + HTML)) == [HTML.decode()]


def test_a_header_may_have_no_fields(tmp_path: Path) -> None:
    for start in (b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\n\n"):
        assert texts(tmp_path, response(0, start + HTML)) == [HTML.decode()]


@pytest.mark.parametrize("colon", [" :", "\t:", "  : ", ":"])
def test_fields_with_spaces_before_the_colon(tmp_path: Path, colon: str) -> None:
    russian = "<p>Привет</p>"
    fields = f"Content-Type{colon}text/html; charset=windows-1251", f"content-encoding{colon}gzip"
    assert texts(tmp_path, page(0, gzip.compress(russian.encode("cp1251")), *fields)) == [russian]
    chunks = b"5\r\n<p>ab\r\n0\r\n\r\n"
    assert texts(tmp_path, page(0, chunks, "Content-Type: text/html", f"Transfer-Encoding{colon}chunked")) == ["<p>ab"]


def test_fields_of_a_record_with_spaces_before_the_colon(tmp_path: Path) -> None:
    (document,), _ = read(tmp_path, page(3).replace(b": ", b" : ", 6))
    assert (document.id, document.metadata["url"], document.text) == ("<urn:uuid:3>", "http://a.example/3", PAGE)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Type: text/html, text/html; charset=koi8-r"],
        ["Content-Type: text/html; charset=koi8-r, text/html"],
        ["Content-Type: text/html; charset=koi8-r", "Content-Type: text/html"],
        ["Content-Type: text/html", "content-type: text/html;charset=KOI8-R"],
        ["Content-Type: image/png", "Content-Type: text/html; charset=koi8-r"],
        ["Content-Type: text/html; charset=latin1", "Content-Type: text/html; charset=koi8-r"],
        ['Content-Type: text/html; x="a, image/png"; charset=koi8-r'],
        ["Content-Type: text/html; charset=koi8-r, */*"],
        ["Content-Type: text/html; charset=koi8-r, junk"],
        ["Content-Type: text/html, charset=koi8-r"],
    ],
)
def test_of_several_content_types_the_last_valid_one_counts(tmp_path: Path, lines: list[str]) -> None:
    assert texts(tmp_path, page(0, "<p>мир</p>".encode("koi8-r"), *lines)) == ["<p>мир</p>"]


def test_a_content_type_that_is_none_is_guessed(tmp_path: Path) -> None:
    for said in ("", "html", "*/*", "charset=utf-8"):
        assert texts(tmp_path, page(0, b"<p>a</p>", f"Content-Type: {said}")) == ["<p>a</p>"]
        assert texts(tmp_path, page(0, gzip.compress(b"<p>a"), f"Content-Type: {said}", "Content-Encoding: gzip"))
        assert not texts(tmp_path, page(0, b"\x89PNG", f"Content-Type: {said}"))


SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
HALF = b"<p>" + bytes(range(97, 123)) * 1000
WHOLE = HALF + HALF
STREAMS = {
    "gzip": gzip.compress(HALF) * 2,
    "gzip, an empty member": gzip.compress(HALF) + gzip.compress(b"") + gzip.compress(HALF),
    "gzip, then junk": gzip.compress(WHOLE) + b"junk",
    "gzip after an empty line": b"\r\n" + gzip.compress(WHOLE),
    "deflate": zlib.compress(HALF) * 2,
    "deflate, then junk": zlib.compress(WHOLE) + b"junk",
    "zstd": zstandard.compress(HALF) * 2,
    "zstd, skippable frames": SKIPPABLE + zstandard.compress(HALF) + SKIPPABLE + zstandard.compress(HALF) + SKIPPABLE,
    "zstd, an empty frame": zstandard.compress(b"") + zstandard.compress(WHOLE),
    "zstd, then junk": zstandard.compress(WHOLE) + b"junk",
    "zstd after an empty line": b"\r\n" + zstandard.compress(WHOLE),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_body_of_several_streams_is_read_whole(tmp_path: Path, name: str) -> None:
    coding = f"Content-Encoding: {name.split(',')[0].split()[0]}"
    assert texts(tmp_path, page(0, STREAMS[name], "Content-Type: text/html", coding)) == [WHOLE.decode()]


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Encoding: gzip, zstd"],
        ["Content-Encoding: gzip", "Content-Encoding : zstd"],
        ["Content-Encoding: gzip", "Transfer-Encoding: zstd"],
        ['Content-Encoding: "gzip" ,zstd;q=1'],
    ],
)
def test_a_list_of_encodings_is_undone_from_its_end(tmp_path: Path, lines: list[str]) -> None:
    body = zstandard.compress(gzip.compress(WHOLE))
    assert texts(tmp_path, page(0, body, "Content-Type: text/html", *lines)) == [WHOLE.decode()]


@pytest.mark.parametrize("cut", [-1, -7, 5, 9])
@pytest.mark.parametrize("name", ["gzip", "zstd", "zstd, skippable frames"])
def test_a_stream_that_breaks_off_is_bad(tmp_path: Path, name: str, cut: int) -> None:
    fields = "Content-Type: text/html", f"Content-Encoding: {name.split(',')[0]}"
    documents, task = read(tmp_path, page(0, STREAMS[name][:cut], *fields), on_bad_record="skip")
    assert (documents, task.bad_records) == ([], {"encoding": 1})


NOT_CHUNKED = [
    "Face\r\nThe word above is the title of this text.\r\n",
    "0\r\n1\r\n2 apples\r\n",
    "0\n1\n",
    "2024\r\nA year in numbers, and more text\r\n",
    "3\r\nabcdefg",
    "cafe\nbabe\n",
    "a",
    "1234",
    "dead beef\r\n",
    "FFFFFFFFFFFFFFFF\r\nx",
    "5;note\r\nthis is a list",
]


@pytest.mark.parametrize("text", NOT_CHUNKED)
@pytest.mark.parametrize("line_end", ["", "\r\n", "\r\n\r\n"])
def test_a_text_that_is_not_chunked_any_more_is_kept(tmp_path: Path, text: str, line_end: str) -> None:
    body = (text + line_end).encode()
    assert texts(tmp_path, page(0, body, "Content-Type: text/plain", "Transfer-Encoding: chunked")) == [body.decode()]


@pytest.mark.parametrize("text", ["1\r\n2\r\n3\r\n", "2\r\nab\r\n0\r\nmore", "1\r\na\r\n2 apples\r\n", "2000\r\n<p>a"])
def test_a_body_that_may_be_chunked_is_kept_or_bad_but_never_empty(tmp_path: Path, text: str) -> None:
    record = page(0, text.encode(), "Content-Type: text/plain", "Transfer-Encoding: chunked")
    documents, task = read(tmp_path, record, on_bad_record="skip")
    assert [document.text for document in documents] == [text] or task.bad_records == {"encoding": 1}


@pytest.mark.parametrize(
    "body",
    [b"5\r\n<p>ab\r\n0\r\n", b"5\n<p>ab\n0\n\n", b"5 ;x\r\n<p>ab\r\n0\r\nX: y\r\n\r\n", b"\r\n5\r\n<p>ab\r\n0\r\n\r\n"],
)
def test_chunks_with_odd_lines(tmp_path: Path, body: bytes) -> None:
    assert texts(tmp_path, page(0, body, "Content-Type: text/html", "Transfer-Encoding: chunked")) == ["<p>ab"]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "compress", "chunked"])
def test_bytes_that_are_neither_encoded_as_declared_nor_text_are_bad(tmp_path: Path, coding: str) -> None:
    body = b"\x1f\x9d\x90\0\x01\x02" * 20
    record = page(0, body, "Content-Type: text/html", f"Content-Encoding: {coding}")
    documents, task = read(tmp_path, record, on_bad_record="skip")
    assert (documents, task.bad_records) == ([], {"encoding": 1})


LATE = b"<html><head><script>" + b"x=1;" * 1000 + b"</script>"
RUSSIAN = "Привет, мир"


@pytest.mark.parametrize(
    "before",
    [
        LATE,
        b"<head><style>" + b"a{b:c}" * 1000 + b"</style>",
        b"<head><title>" + b"a" * 5000 + b"</title>",
        b"<!--" + b"-" * 5000 + b"-->",
        b"<body>" + b"<p>text</p>" * 100_000,
        LATE + b'<!-- <meta charset="koi8-r"> -->',
        LATE + b"<script>'<meta charset=koi8-r>'</script>",
        b'<head><!-- <meta charset="koi8-r"> -->',
        b"<head><SCRIPT>'<meta charset=koi8-r>'</SCRIPT >",
        b"<head><textarea><meta charset=koi8-r></textarea>",
        LATE + b"<meta charset=no-such>",
        b"<!--><meta name=a><!-- x -->",
    ],
)
@pytest.mark.parametrize(
    "meta",
    [
        b'<meta charset="windows-1251">',
        b"<META HTTP-EQUIV='content-type' CONTENT='text/html; charset=windows-1251'>",
        b"<meta/charset=windows-1251>",
    ],
)
def test_a_charset_is_found_wherever_the_page_declares_it(tmp_path: Path, before: bytes, meta: bytes) -> None:
    body = before + meta + RUSSIAN.encode("cp1251")
    (text,) = texts(tmp_path, page(0, body, "Content-Type: text/html"))
    assert text.endswith(RUSSIAN)


def test_a_late_declaration_does_not_garble_a_page_in_utf_8(tmp_path: Path) -> None:
    body = LATE + b"<meta charset=windows-1251>" + RUSSIAN.encode()
    (text,) = texts(tmp_path, page(0, body, "Content-Type: text/html"))
    assert text.endswith(RUSSIAN)


def test_a_late_declaration_of_a_charset_of_ascii_bytes(tmp_path: Path) -> None:
    body = LATE + b"<meta charset=iso-2022-jp>" + "日本語".encode("iso-2022-jp")
    (text,) = texts(tmp_path, page(0, body, "Content-Type: text/html"))
    assert text.endswith("日本語")


def test_declarations_without_end_take_linear_time(tmp_path: Path) -> None:
    body = b"<meta " * 200_000 + b"<!--" * 200_000 + b"\xff"
    assert len(texts(tmp_path, page(0, body, "Content-Type: text/html"))) == 1


def test_each_record_that_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    data = b"".join(
        [
            *(page(0, kind=kind) for kind in ("request", "metadata", "warcinfo", "revisit", "resource", "odd\x1b[2J")),
            page(1, b"\x89PNG", "Content-Type: image/png"),
            page(2, b"body{}", "Content-Type: text/css"),
            page(3, b""),
            page(4, b" \n"),
            response(5, b"HTTP/1.1 301 Moved\r\nContent-Type: text/html\r\n\r\n"),
            page(6, b"x" * 2000),
            page(7, gzip.compress(b"x" * 2000), "Content-Type: text/html", "Content-Encoding: gzip"),
            page(8, b"x" * 2 * 2**20),
            page(9),
        ]
    )
    documents, task = read(tmp_path, data, max_body_bytes=1000)
    assert [document.id for document in documents] == ["<urn:uuid:9>"]
    assert task.left_out == {
        **{f"record type {kind}": 1 for kind in ("request", "metadata", "warcinfo", "revisit", "resource", "unknown")},
        "content_types": 2,
        "empty": 2,
        "empty, status 301": 1,
        "max_body_bytes": 3,
    }


def test_a_task_that_leaves_out_everything_heeds_a_signal(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(page(0, kind="request") * 3)
    step, task = bound(tmp_path)

    class Signalled(dict[str, int]):
        def __setitem__(self, reason: str, count: int) -> None:
            super().__setitem__(reason, count)
            task.circumstances.stop.signal = SIGTERM

    task.left_out = Signalled()
    with pytest.raises(Interrupted):
        list(step(None, 0, 1))
    assert task.left_out == {"record type request": 1}


def test_status_and_statistics_show_what_was_left_out(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(2):
        (tmp_path / "in" / f"{index}.warc").write_bytes(page(0) + page(1, kind="request") * 3 + page(2, b""))
    (tmp_path / "p.yaml").write_text(
        f"name: p\nrun_dir: {tmp_path}/run\ntasks: 2\npipeline:\n  - read_warc: {{path: {tmp_path}/in}}\n"
        f"  - write_jsonl: {{path: {tmp_path}/out}}\n"
    )
    cli("launch", str(tmp_path / "p.yaml"), check=0)
    assert "records left out: 6 record type request, 2 empty" in cli("status", str(tmp_path / "run"), check=0).out
    (stats,) = (tmp_path / "run").rglob("stats.json")
    assert '"left_out": {\n    "record type request": 6,\n    "empty": 2\n  }' in stats.read_text()
    (report,) = (tmp_path / "run").rglob("report.html")
    assert "records left out: record type request" in report.read_text()


BOMBS = {
    "gzip": gzip.compress(bytes(200 * 10**6)),
    "deflate": zlib.compress(bytes(200 * 10**6)),
    "zstd": zstandard.compress(bytes(200 * 10**6)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_body_beyond_max_record_bytes_is_bad_and_memory_stays_bounded(tmp_path: Path, name: str) -> None:
    bomb = page(1, BOMBS[name], "Content-Type: text/html", f"Content-Encoding: {name}")
    tracemalloc.start()
    try:
        documents, task = read(tmp_path, page(0) + bomb + page(2), on_bad_record="skip", max_record_bytes=10**6)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [document.id for document in documents] == ["<urn:uuid:0>", "<urn:uuid:2>"]
    assert task.bad_records == {"size": 1}
    assert peak < 60 * 10**6


def test_a_brotli_body_beyond_max_record_bytes_is_bad(tmp_path: Path) -> None:
    stream_io = pytest.importorskip("fastwarc.stream_io")
    out = io.BytesIO()
    writer = stream_io.BrotliWriter(out)
    writer.write(bytes(2 * 10**6))
    writer.close()
    bomb = page(1, out.getvalue(), "Content-Type: text/html", "Content-Encoding: br")
    documents, task = read(tmp_path, page(0) + bomb, on_bad_record="skip", max_record_bytes=10**6)
    assert (len(documents), task.bad_records) == (1, {"size": 1})


def test_a_record_beyond_max_record_bytes_is_bad(tmp_path: Path) -> None:
    data = page(0) + page(1, b"x" * 3000) + page(2)
    with pytest.raises(
        BadInput, match=rf"record 2, byte {len(page(0))}: the record has 3,\d\d\d bytes, more than max_"
    ):
        read(tmp_path, data, max_record_bytes=2000)
    documents, task = read(tmp_path, data, max_record_bytes=2000, on_bad_record="skip")
    assert (len(documents), task.bad_records) == (2, {"size": 1})


def test_a_header_line_without_end_takes_bounded_memory(tmp_path: Path) -> None:
    data = page(0) + b"WARC/1.0\r\nWARC-Type: response\r\nX: " + b"x" * 3 * 10**6
    with pytest.raises(BadInput, match="record 2, byte"):
        read(tmp_path, data)
