"""A rank with two processors on S3: reads ahead, codecs in threads, and uploads at once, on a store that fails."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagger.errors import BadInput
from stagger.pipeline import Shard
from stagger.pipeline.compression import extension_of
from stagger.pipeline.task_context import TaskContext
from stagger.steps.jsonl import ReadJsonl, WriteJsonl
from stagger.storage.storage import Storage
from tests.conftest import Cli, PipelineFiles, contents
from tests.kit.s3_server import S3Server
from tests.pipeline.test_compression import pack
from tests.s3.conftest import THREE_IN_TEN, put


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shards are fetched in ranges and decompressed in a thread, and small outputs have a thread."""
    monkeypatch.setattr("stagger.pipeline.fetches.RANGE_BYTES", 20_000)
    monkeypatch.setattr("stagger.pipeline.fetches.LARGE_BYTES", 40_000)
    monkeypatch.setattr("stagger.pipeline.task_context.THREAD_BYTES", 10_000)
    monkeypatch.setattr("stagger.pipeline.task_context.GATHER_BYTES", 5_000)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})


def lines(count: int, seed: int) -> bytes:
    random = Random(seed)
    records = ({"text": random.randbytes(300).hex(), "id": f"{seed}-{number}"} for number in range(count))
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def outcome(shards: list[Shard], target: str, codec: Any, **options: Any) -> bytes:
    """Run a task that copies the shards, and return its output."""
    storage = Storage({"s3": {"engine": "obstore"}})
    reader, writer = ReadJsonl("s3://data/two"), WriteJsonl(path=f"s3://out/{target}", compression=codec)
    task = TaskContext(storage, 0, 1, shards, "tag", **options)
    reader.bind(task)
    writer.bind(task)
    try:
        for _ in writer(reader(None, 0, 1), 0, 1):
            pass
        (output,) = task.finish()
        output.commit(lambda: None, None)
        task.committed()
    finally:
        task.abort()
        task.close()
    return storage.read(output.path)


def loaded(sizes: list[int], codec: Any) -> list[Shard]:
    storage = Storage({"s3": {"engine": "obstore"}})
    shards = []
    for number, count in enumerate(sizes):
        name = f"{number}.jsonl{extension_of(codec)}"
        entry = put(storage, f"s3://data/two/{name}", pack(lines(count, number), codec))
        shards.append(Shard(name, entry.size, entry.version))
    return shards


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    inputs=st.sampled_from(["gzip", "zstd"]),
    codec=st.sampled_from(["gzip", "zstd", None]),
    seed=st.integers(0, 1000),
)
def test_the_output_is_that_of_the_plain_way_whatever_fails(
    s3: S3Server, small: None, sizes: list[int], inputs: Any, codec: Any, seed: int
) -> None:
    s3.set_faults()
    shards = loaded(sizes, inputs)
    plain = outcome(shards, "plain", codec, read_ahead_bytes=0)
    s3.set_faults(**THREE_IN_TEN, seed=seed)
    try:
        assert outcome(shards, "threads", codec, read_ahead_bytes=10**6, cpus=2) == plain
    finally:
        s3.set_faults()


def test_so_is_an_output_that_is_uploaded_in_parts(s3: S3Server, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagger.storage.s3.output.ONE_PUT_BYTES", 2**20)
    monkeypatch.setattr("stagger.storage.s3.output.PART_BYTES", 5 * 2**20)
    shards = loaded([6000, 6000], "zstd")
    plain = outcome(shards, "plain", "gzip", read_ahead_bytes=0)
    s3.reset()
    s3.set_faults(**THREE_IN_TEN, seed=1)
    assert outcome(shards, "threads", "gzip", read_ahead_bytes=10**6, cpus=2) == plain
    assert s3.stats()["requests"]["CompleteMultipartUpload"] >= 1


def test_a_damaged_shard_fails_the_rank_and_leaves_neither_object_nor_upload(s3: S3Server, small: None) -> None:
    storage = Storage({"s3": {"engine": "obstore"}})
    whole, cut = pack(lines(400, 1), "gzip"), pack(lines(400, 2), "gzip")[:-100]
    names = {"a.jsonl.gz": whole, "b.jsonl.gz": cut}
    entries = {name: put(storage, f"s3://data/two/{name}", data) for name, data in names.items()}
    shards = [Shard(name, entry.size, entry.version) for name, entry in entries.items()]
    errors = set()
    for cpus in (1, 2):
        with pytest.raises(BadInput, match="breaks off") as raised:
            outcome(shards, f"damaged-{cpus}", "zstd", cpus=cpus)
        errors.add(str(raised.value))
        assert storage.list(f"s3://out/damaged-{cpus}") == []
        assert storage.abort_uploads(f"s3://out/damaged-{cpus}/00000.jsonl.zst") == 0
    assert len(errors) == 1


def test_a_killed_rank_with_threads_leaves_nothing_and_its_retry_repairs(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Any
) -> None:
    """On a file system. The shard is large enough for threads on any machine with two processors."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "large.jsonl.gz").write_bytes(pack(lines(8000, 3), "gzip"))
    flag = tmp_path / "flag"
    steps = ({"my_steps:kill_on": {"ranks": [0], "flag": str(flag)}},)
    where: dict[str, Any] = {"source": str(source), "tasks": 1, "executor": {"type": "local", "workers": 1}}
    cli("launch", pipeline_file("plain", **where), check=0)
    cli("launch", pipeline_file("killed", steps=steps, **where), check=1)
    assert contents(tmp_path / "killed-output") == {}
    flag.touch()
    cli("retry", str(tmp_path / "killed"), check=0)
    assert contents(tmp_path / "killed-output") == contents(tmp_path / "plain-output")
