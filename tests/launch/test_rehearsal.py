"""A rehearsal runs all stages of a run over its first shards, and touches nothing of the run itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from stagger import Filter, LocalExecutor, ReadJsonl, SlurmExecutor, StaggerError, WithRemoved, WriteJsonl
from stagger.launch.redirect import Redirect, told_outputs
from tests.conftest import Cli, contents, jsonl

SHARDS = 20


def text_of(shard: int, number: int) -> str:
    """A text that no other is similar to; of the numbers 7 to 9 a short one."""
    chosen = random.Random(f"{shard} {number}")
    return " ".join(f"word{chosen.randrange(10**6)}" for _ in range(40 if number < 7 else 2))


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """Shards of ten documents, of which each has a copy in the next shard."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    for shard in range(SHARDS):
        lines = [
            {"text": text_of(own, n), "id": f"{shard}-{n}-{own}"}
            for n in range(10)
            for own in ([shard, shard + 1] if n < 2 else [shard])
        ]
        (folder / f"{shard:02d}.jsonl").write_bytes(jsonl(lines))
    return folder


def staged(folder: Path, crawl: Path, **executor: Any) -> Path:
    """A file of two stages for a Slurm cluster, with thousands of ranks."""
    out = f"{folder}/out"
    content = {
        "name": "staged",
        "run_dir": f"{folder}/run",
        "executor": {"type": "slurm", "partition": "none", **executor},
        "stages": [
            {
                "name": "base",
                "tasks": 8000,
                "pipeline": [
                    {"read_jsonl": {"path": str(crawl)}},
                    {"filter": {"function": "my_filters:short"}, "removed": {"path": f"{out}/removed"}},
                    {"my_filters:noted": {"output": f"{out}/notes"}},
                    {"write_jsonl": {"path": f"{out}/base"}},
                ],
            },
            {
                "name": "again",
                "depends": ["base"],
                "tasks": 1000,
                "pipeline": [{"read_jsonl": {"path": "${OUT}/base"}}, {"write_jsonl": {"path": "${OUT}/again"}}],
            },
            {
                "name": "all",
                "publish": {"repo": "nobody/nothing"},
                "depends": ["again"],
                "tasks": 8000,
                "pipeline": [
                    {"read_jsonl": {"path": out, "recursive": True, "glob": "[ab]*/*"}},
                    {"write_jsonl": {"path": f"{out}/all", "compression": None}},
                ],
            },
        ],
    }
    (folder / "my_filters.py").write_text(
        "import os\n"
        "def short(document):\n"
        "    return len(document.text) > 40 or 'too_short'\n"
        "def noted(data, rank, world_size, output):\n"
        "    os.makedirs(output, exist_ok=True)\n"
        "    open(os.path.join(output, str(rank)), 'w').close()\n"
        "    return data\n"
    )
    file = folder / "staged.yaml"
    file.write_text(json.dumps(content))
    return file


def test_all_stages_run_over_the_first_shards_in_a_folder_of_their_own(cli: Cli, tmp_path: Path, crawl: Path) -> None:
    file = staged(tmp_path, crawl)
    before = set(tmp_path.iterdir())
    ran = cli("launch", file, "--rehearse", "3", OUT=str(tmp_path / "out"), check=0)
    rehearsal = tmp_path / "_run-rehearsal"
    assert set(tmp_path.iterdir()) - before - {tmp_path / "__pycache__"} == {rehearsal}
    outputs = rehearsal / "outputs" / str(tmp_path)[1:] / "out"
    assert sorted(path.name for path in outputs.iterdir()) == ["again", "all", "base", "notes", "removed"]
    written = [json.loads(line) for data in contents(outputs / "all").values() for line in data.splitlines()]
    assert {document["id"].partition("-")[0] for document in written} == {"0", "1", "2"}
    assert "dropped 9 too_short" in ran.out
    assert len(written) == 2 * 3 * 9  # Those of base, and those of again.
    said = cli("launch", file, "--rehearse", "2", "--json", OUT=str(tmp_path / "out"), check=0).json
    assert said["rehearsal"] == str(rehearsal)
    assert [stage["tasks"] for stage in said["stages"]] == [2, 2, 2]
    assert [stage["done"] for stage in said["stages"]] == [2, 2, 2]


def test_a_stage_without_input_shows_what_the_stages_before_it_dropped(cli: Cli, tmp_path: Path, crawl: Path) -> None:
    file = staged(tmp_path, crawl)
    (tmp_path / "my_filters.py").write_text(
        (tmp_path / "my_filters.py").read_text().replace("len(document.text) > 40", "False")
    )
    ran = cli("launch", file, "--rehearse", 1, OUT=str(tmp_path / "out"), check=2)
    assert "dropped 12 too_short" in ran.out
    assert "(read_jsonl): Nothing in" in ran.err


def test_what_cannot_be_rehearsed_is_refused(cli: Cli, tmp_path: Path, crawl: Path) -> None:
    file = staged(tmp_path, crawl)
    here = tmp_path / "_run-rehearsal"
    here.mkdir()
    (here / "mine").touch()
    out = {"OUT": str(tmp_path / "out")}
    assert (
        "is no rehearsal, but a rehearsal would lie there" in cli("launch", file, "--rehearse", 1, **out, check=2).err
    )
    assert "leave --limit out" in cli("launch", file, "--rehearse", 1, "--limit", 2, **out, check=2).err
    assert (here / "mine").exists()
    content = json.loads(file.read_text())
    content["stages"][0]["pipeline"][0] = "my_steps:numbers"
    (here / "mine").unlink()
    (tmp_path / "my_steps.py").write_text("def numbers(data=None, rank=0, world_size=1):\n    yield from range(9)\n")
    file.write_text(json.dumps(content))
    assert (
        "makes its own records, so base has no first shards" in cli("launch", file, "--rehearse", 1, **out, check=2).err
    )


def test_a_run_of_python_objects_is_rehearsed_as_well(tmp_path: Path, crawl: Path) -> None:
    dedup = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    readers = pytest.importorskip("datatrove.pipeline.readers")
    writers = pytest.importorskip("datatrove.pipeline.writers")
    config = dedup.MinhashConfig(num_buckets=4, hashes_per_bucket=2)
    place = {name: str(tmp_path / "out" / name) for name in ("base", "sig", "buckets", "ids", "removed", "final", "dt")}

    def executor(name: str, tasks: int, depends: Any, *steps: Any) -> SlurmExecutor:
        return SlurmExecutor(list(steps), run_dir=tmp_path / "run", name=name, tasks=tasks, depends=depends or ())

    base = executor(
        "base",
        100,
        None,
        readers.JsonlReader(str(crawl)),
        WithRemoved(Filter(lambda document: "-9-" not in document.id), place["removed"]),
        writers.JsonlWriter(place["dt"]),
        WriteJsonl(place["base"]),
    )
    sig = executor("sig", 50, base, ReadJsonl(place["base"]), dedup.MinhashDedupSignature(place["sig"], config=config))
    buckets = executor("buckets", 40, sig, dedup.MinhashDedupBuckets(place["sig"], place["buckets"], config=config))
    cluster = executor("cluster", 1, buckets, dedup.MinhashDedupCluster(place["buckets"], place["ids"], config=config))
    final = executor(
        "final",
        50,
        cluster,
        ReadJsonl(place["base"]),
        dedup.MinhashDedupFilter(place["ids"]),
        WriteJsonl(place["final"], compression=None),
    )
    run = final.run(rehearse=3)
    status = run.status()
    assert [stage.tasks for stage in status.stages] == [3, 3, 4, 1, 3]
    assert status.complete
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "run").exists()
    outputs = tmp_path / "_run-rehearsal" / "outputs" / place["final"][1:]
    ids = [json.loads(line)["id"] for data in contents(outputs).values() for line in data.splitlines()]
    assert {one.partition("-")[0] for one in ids} == {"0", "1", "2"}
    assert len(ids) == status["final"].records_in - sum(status["final"].dropped.values())
    with pytest.raises(StaggerError, match="rehearse"):
        final.run(rehearse=0)


def test_paths_of_outputs_and_what_is_below_them_move_together() -> None:
    redirect = Redirect("/r", ("/data/out/a", "s3://b/out"), kept=("/data/in",), above=True)
    params = {
        "path": "/data/out/a/x",
        "data_folder": ["s3://b/out/deep", {"endpoint_url": "http://x"}],
        "input": "/data/out",
        "other": ["/data/out/ab", "/data", "text", 3, None],
        "inner": {"module:Class": {"output_folder": "/data/out/a"}},
    }
    assert redirect.params(params) == {
        "path": "/r/data/out/a/x",
        "data_folder": "/r/s3/b/out/deep",
        "input": "/r/data/out",
        "other": ["/data/out/ab", "/data", "text", 3, None],
        "inner": {"module:Class": {"output_folder": "/r/data/out/a"}},
    }
    told = told_outputs({"output": "/x/y", "output_filename": "a/b", "in": {"output_folder": ["s3://c/d", {"k": 1}]}})
    assert list(told) == ["/x/y", "s3://c/d"]


def test_a_local_file_keeps_its_workers(tmp_path: Path, crawl: Path) -> None:
    keep: Any = lambda document: True  # noqa: E731
    steps: list[Any] = [ReadJsonl(str(crawl)), Filter(keep), WriteJsonl(str(tmp_path / "out"), filename="{stem}.jsonl")]
    run = LocalExecutor(steps, run_dir=tmp_path / "run", tasks=20, workers=1).run(rehearse=1)
    assert run.status().tasks == 1
    assert [path.name for path in (tmp_path / "_run-rehearsal").rglob("*.jsonl.zst")] == ["00.jsonl.zst"]
