"""Damaged input fails its rank, and the error locates the damage; no data is silently lost."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import zstandard

from tests.conftest import Cli, PipelineFiles, contents, documents, jsonl, output_ids
from tests.kit.runs import counts, status

GOOD = jsonl(documents(0, 3000))
LINES = GOOD.splitlines(keepends=True)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(GOOD)
GZIP = gzip.compress(GOOD)
OFFSET = sum(len(line) for line in LINES[:1500])


def with_line(line: bytes) -> bytes:
    return b"".join([*LINES[:1500], line, *LINES[1501:]])


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]


#: Name of the shard -> (its content, a pattern of the error).
DAMAGED: dict[str, tuple[bytes, str]] = {
    "00-cut.jsonl": (
        GOOD[: OFFSET + 20],
        rf"record 1501, byte {OFFSET}: the last line breaks off: the file is truncated",
    ),
    "01-cut.jsonl.gz": (GZIP[:-4000], r"record \d+, byte \d+: the gzip stream breaks off: the file is truncated"),
    "02-cut.jsonl.zst": (ZSTD[:-4000], r"record \d+, byte \d+: the zstd stream breaks off: the file is truncated"),
    "03-checksum.jsonl.gz": (flipped(GZIP, len(GZIP) - 6), r"record \d+, byte \d+: the gzip stream is damaged: CRC"),
    "04-checksum.jsonl.zst": (flipped(ZSTD, len(ZSTD) - 2), r"record \d+, byte \d+: the zstd stream is damaged"),
    "05-utf8.jsonl": (
        with_line(b'{"text": "a\xffb", "id": "x"}\n'),
        rf"record 1501, byte {OFFSET}: not UTF-8: byte 0xff at position 11 of the record",
    ),
    "06-json.jsonl": (with_line(b'{"text": "x",,}\n'), rf"record 1501, byte {OFFSET}: not JSON"),
    "07-key.jsonl.gz": (
        gzip.compress(with_line(b'{"txt": "x"}\n')),
        rf"record 1501, byte {OFFSET}: there is no key 'text'; set text_key",
    ),
    "08-empty.jsonl": (b"", r"record 1, byte 0: the file is empty"),
    "09-empty.jsonl.gz": (b"", r"record 1, byte 0: the file is empty"),
    "10-zeros.jsonl": (
        GOOD[:OFFSET] + bytes(4096),
        r"record 1501, byte \d+: the file has zero bytes instead of a record",
    ),
    "11-zeros.jsonl.gz": (bytes(4096), r"record 1, byte 0: the file is not gzip"),
    "12-not.jsonl.zst": (GOOD, r"record 1, byte 0: the file is not zstd"),
    "13-second-member-cut.jsonl.gz": (GZIP + GZIP[:-5], r"record \d+, byte \d+: the gzip stream breaks off"),
}


def test_every_kind_of_damage_fails_its_rank_and_is_located(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    source = tmp_path / "damaged"
    source.mkdir()
    for name, (data, _) in DAMAGED.items():
        (source / name).write_bytes(data)
    (source / "99-good.jsonl").write_bytes(GOOD)
    file = pipeline_file(source=str(source), tasks=len(DAMAGED) + 1)
    ran = cli("launch", file, check=1)
    assert "2 of 15 shards are empty, such as 08-empty.jsonl, and would fail a rank" in ran.err
    stage = status(cli, tmp_path / "run")
    assert counts(stage) == (1, len(DAMAGED), 0, 0)
    for rank, (name, (_, said)) in enumerate(DAMAGED.items()):
        failure = json.loads((tmp_path / "run" / "failures" / f"{rank:05d}.1.json").read_text())
        assert failure["kind"] in ("BadInput", "BadRecord")
        assert failure["error"].startswith(f"{source}/{name}, record ")
        assert re.search(said, failure["error"]), failure["error"]
    assert list(contents(tmp_path / "run-output")) == [f"{len(DAMAGED):05d}.jsonl.zst"]
    assert output_ids(tmp_path / "run-output") == sorted(f"doc-{i}" for i in range(3000))


def skipping(file: Path, **options: Any) -> Path:
    content = json.loads(file.read_text())
    content["pipeline"][0]["read_jsonl"] |= {"on_bad_record": "skip", **options}
    file.write_text(json.dumps(content))
    return file


def test_bad_records_can_be_skipped_and_are_counted(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    source = tmp_path / "bad"
    source.mkdir()
    bad = [b'{"text": "\xff"}\n', b"{}\n", b"[1]\n", b'{"text": 1}\n', b"nonsense\n", b'{"text": "x", "id": 1.5}\n']
    (source / "a.jsonl").write_bytes(b"".join(line for pair in zip(LINES, bad, strict=False) for line in pair))
    (source / "b.jsonl").write_bytes(b"".join(LINES[6:10]) + b"".join(bad[:1] * 12))
    file = skipping(pipeline_file(source=str(source), tasks=1), max_bad_records=18)
    out = cli("launch", file, check=0).out
    assert "bad records skipped: 13 utf-8, 2 text, 2 json, 1 id" in out
    record = json.loads((tmp_path / "run" / "completions" / "00000.json").read_text())
    assert record["bad_records"]["skipped"] == {"utf-8": 13, "text": 2, "json": 2, "id": 1}
    examples = record["bad_records"]["examples"]
    assert len(examples) == 10
    assert examples[1] == {
        "shard": f"{source}/a.jsonl",
        "record": 4,
        "byte": len(LINES[0] + bad[0] + LINES[1]),
        "kind": "text",
        "reason": "there is no key 'text'; set text_key to the key that holds the text, or missing_text: empty if"
        " records without it have none",
    }
    assert output_ids(tmp_path / "run-output") == sorted(f"doc-{i}" for i in range(10))
    assert json.loads((tmp_path / "run" / "stats.json").read_text())["bad_records"]["utf-8"] == 13
    assert "not UTF-8: byte 0xff" in (tmp_path / "run" / "report.html").read_text()


def test_one_bad_record_too_many_fails_the_rank(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    source = tmp_path / "bad"
    source.mkdir()
    (source / "a.jsonl").write_bytes(b"".join([*LINES[:5], b"{}\n", b"{}\n", b"{}\n", *LINES[5:]]))
    cli("launch", skipping(pipeline_file(source=str(source), tasks=1), max_bad_records=2), check=1)
    failure = json.loads((tmp_path / "run" / "failures" / "00000.1.json").read_text())
    assert "a.jsonl, record 8, byte" in failure["error"]
    assert "this rank now has 3 bad records, more than max_bad_records (2)" in failure["error"]


def test_truncated_files_are_never_skipped(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    source = tmp_path / "bad"
    source.mkdir()
    names = ("00-cut.jsonl", "01-cut.jsonl.gz", "02-cut.jsonl.zst", "08-empty.jsonl")
    for name in names:
        (source / name).write_bytes(DAMAGED[name][0])
    cli("launch", skipping(pipeline_file(source=str(source)), max_bad_records=10**6), check=1)
    assert counts(status(cli, tmp_path / "run")) == (0, 4, 0, 0)


def test_empty_files_may_be_allowed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    source = tmp_path / "some"
    source.mkdir()
    (source / "a.jsonl").touch()
    (source / "b.jsonl").write_bytes(GOOD)
    file = pipeline_file(source=str(source), tasks=2)
    ran = cli("launch", file, "--set", "pipeline.0.read_jsonl.allow_empty=true", check=0)
    assert "empty" not in ran.err
    assert len(output_ids(tmp_path / "run-output")) == 3000
