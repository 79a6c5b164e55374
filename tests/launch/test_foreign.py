"""Files in output folders that have names of a run's outputs, but are nobody's, never mix with its outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, WriteJsonl
from stagger.errors import RunFailed, StaggerError
from stagger.launch.launch import Wishes, launch
from stagger.launch.retry import retry
from stagger.pipeline.chain import Step
from stagger.rundir.run_folder import RunFolder
from stagger.spec.load import load_file
from tests.conftest import Bucket, Cli, PipelineFiles, output_ids
from tests.kit.buckets import objects, on_s3
from tests.kit.runs import EVERYTHING, completions, failing_run

NAMES = [f"0000{rank}.jsonl" for rank in range(4)]


def go(file: Path, **wishes: Any) -> None:
    launch(load_file(str(file)), Wishes(**wishes)).raise_if_failed()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_outputs_of_another_run_are_refused_or_removed(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(pipeline_file("one", output=str(out), compression=None))
    two = pipeline_file("two", output=str(out), compression=None, tasks=2)
    for more in ((), ("--dry-run",)):
        ran = cli("launch", two, *more, check=2)
        assert f"two: 4 files in {out}, such as 00000.jsonl: not written by this run" in ran.err
        assert "--overwrite" in ran.err
    assert not (tmp_path / "two").exists()
    assert names(out) == NAMES
    dry = cli("launch", two, "--overwrite", "--dry-run", check=0)
    assert f"would remove files: --overwrite removes 4 files in {out}" in dry.err
    assert names(out) == NAMES
    assert f"--overwrite removes 4 files in {out}" in cli("launch", two, "--overwrite", check=0).err
    assert names(out) == NAMES[:2]
    assert output_ids(out) == EVERYTHING


def test_an_earlier_division_of_a_run_whose_records_are_gone_is_refused(
    pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    go(pipeline_file(compression=None))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StaggerError, match=r"run: 4 files in .*/run-output, such as 00000\.jsonl"):
        go(pipeline_file(tasks=2, compression=None))


@pytest.mark.parametrize("writer", [{"compression": "gzip"}, {"compression": None}, {"max_bytes": 4000}])
def test_another_compression_or_size_of_files_is_no_other_output(
    pipeline_file: PipelineFiles, tmp_path: Path, writer: dict[str, Any]
) -> None:
    go(pipeline_file("one", output=str(tmp_path / "out")))
    with pytest.raises(StaggerError, match=r"4 files in .*: not written by this run"):
        go(pipeline_file("two", output=str(tmp_path / "out"), writer=writer))


def test_what_has_other_names_stays(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "below").mkdir(parents=True)
    others = [".00001.jsonl.abc.tmp", "00001.jsonl.bak", "1.jsonl", "_SUCCESS", "below", "notes.txt"]
    for name in others[:4] + others[5:] + ["below/00001.jsonl"]:
        (out / name).write_text("mine")
    go(pipeline_file("a", output=str(out), compression=None, writer={"filename": "a-{rank}.jsonl"}))
    go(pipeline_file("b", output=str(out), compression=None, writer={"filename": "b-{rank}.jsonl"}))
    go(pipeline_file(output=str(out), compression=None), overwrite=True)
    assert names(out) == sorted([*others, *NAMES, *(f"{run}-{name}" for run in "ab" for name in NAMES)])
    assert (out / "below" / "00001.jsonl").read_text() == "mine"


def test_with_stems_only_what_lies_in_the_folder_itself_is_removed(
    pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """A link leads to a folder with other data. Names with a leading _ or . are no outputs."""
    out, other = tmp_path / "out", tmp_path / "other"
    (out / "2024").mkdir(parents=True)
    other.mkdir()
    for path in (out / "old.jsonl", out / "2024" / "old.jsonl", out / "_meta.jsonl", other / "data.jsonl"):
        path.write_text("")
    (out / "link").symlink_to(other)
    (out / "file.jsonl").symlink_to(other / "data.jsonl")
    file = pipeline_file(output=str(out), compression=None, writer={"filename": "{stem}.jsonl"})
    with pytest.raises(StaggerError, match=r"3 files in .*, such as 2024/old\.jsonl"):
        go(file)
    go(file, overwrite=True)
    assert (other / "data.jsonl").exists()
    stems = [f"shard-{index:02d}.jsonl" for index in range(12)]
    assert names(out) == sorted(["2024", "_meta.jsonl", "link", *stems])


def test_input_in_the_output_folder_is_input(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """Shards are converted beside themselves: under another compression they have the names of outputs."""
    for path in pipeline_file.shards.glob("*.zst"):
        path.unlink()
    writer = {"filename": "{stem}.jsonl"}
    file = pipeline_file(output=str(pipeline_file.shards), writer=writer)
    go(file, overwrite=True)
    assert len(names(pipeline_file.shards)) == 16
    cli("status", tmp_path / "run", "--verify", check=0)


def test_a_run_that_goes_on_knows_its_own(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    """Also files of an attempt that died between its renames and its record."""
    flag = failing_run(cli, pipeline_file, tmp_path, 2)
    flag.touch()
    (tmp_path / "run" / "completions" / "00001.json").unlink()
    file = tmp_path / "run.yaml"
    (tmp_path / "run-output" / "00002.jsonl.zst").write_bytes(b"")
    with pytest.raises(StaggerError, match=r"run: 1 file in .*, such as 00002\.jsonl\.zst"):
        go(file)
    go(file, overwrite=True)
    assert output_ids(tmp_path / "run-output") == EVERYTHING
    go(file)
    assert [one["attempt"] for one in completions(tmp_path / "run")] == ["1", "2", "2", "1"]


def test_shards_that_were_committed_are_the_runs_own(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import os, stagger\n"
        "@stagger.stateless\n"
        "def fails(data, rank, world_size, flag):\n"
        "    for document in data:\n"
        "        if document.id == 'doc-599' and not os.path.exists(flag):\n"
        "            raise ValueError('late')\n"
        "        yield document\n"
    )
    step = {"late:fails": {"flag": str(tmp_path / "flag")}}
    file = pipeline_file(steps=(step,), writer={"filename": "{stem}.jsonl"}, commit="shard", tasks=1)
    cli("launch", file, check=1)
    assert len(names(tmp_path / "run-output")) == 11
    (tmp_path / "flag").touch()
    cli("launch", file, check=0)
    assert output_ids(tmp_path / "run-output") == EVERYTHING


def test_files_that_come_after_the_launch_are_named(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    flag, out = failing_run(cli, pipeline_file, tmp_path, 2), tmp_path / "run-output"
    shutil.copy(out / "00000.jsonl.zst", out / "00007.jsonl.zst")
    flag.touch()
    expected = f"1 file in {out}, such as 00007.jsonl.zst"
    assert f"run: {expected}: not written by this run" in cli("retry", tmp_path / "run", check=0).err
    cli("status", tmp_path / "run", check=0)
    assert f"not written by this run, although named as its outputs: {expected}" in (
        cli("status", tmp_path / "run", "--verify", check=1).out
    )


def two_stages(folder: Path, shards: Path, tasks: int = 4, **more: Any) -> Path:
    """A pipeline file: `merge` reads what `filter` writes."""
    middle = str(folder / "middle")
    first = [{"read_jsonl": {"path": str(shards)}}, {"write_jsonl": {"path": middle, "compression": None}}]
    last = [
        {"read_jsonl": {"path": middle, **more}},
        {"write_jsonl": {"path": str(folder / "end"), "compression": None}},
    ]
    stages = [
        {"name": "filter", "tasks": tasks, "pipeline": first},
        {"name": "merge", "depends": ["filter"], "pipeline": last},
    ]
    file = folder / "p.yaml"
    file.write_text(json.dumps({"name": "p", "run_dir": str(folder / "run"), "stages": stages}))
    return file


def test_the_folders_of_all_stages_are_looked_into_before_the_first_starts(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "end").mkdir()
    (tmp_path / "end" / "00005.jsonl").touch()
    file = two_stages(tmp_path, shards)
    with pytest.raises(StaggerError, match=r"merge: 1 file in .*/end, such as 00005\.jsonl"):
        go(file)
    assert not (tmp_path / "middle").exists()
    go(file, overwrite=True)
    assert names(tmp_path / "end") == ["00000.jsonl"]


@pytest.mark.parametrize("reader", [{}, {"glob": "*0*"}, {"path": "above", "recursive": True}])
def test_a_stage_reads_what_the_records_list(tmp_path: Path, shards: Path, reader: dict[str, Any]) -> None:
    """While the first stage runs, a file with a name of its outputs is put beside them; and one with another name."""
    if "path" in reader:
        reader = {**reader, "path": str(tmp_path)}
        reader["glob"] = "middle/*"
    file = two_stages(tmp_path, shards, **reader)
    steps = json.loads(file.read_text())
    steps["stages"][0]["pipeline"].insert(1, {"beside:put": {"folder": str(tmp_path / "middle")}})
    (tmp_path / "beside.py").write_text(
        "import os\n"
        "def put(data, rank, world_size, folder):\n"
        "    for name, id_ in (('00009.jsonl', 'foreign'), ('more0.jsonl', 'added')):\n"
        "        with open(os.path.join(folder, name), 'w') as file:\n"
        '            file.write(\'{"text": "t", "id": "%s"}\' % id_)\n'
        "    yield from data\n"
    )
    file.write_text(json.dumps(steps))
    go(file)
    assert output_ids(tmp_path / "end") == sorted([*EVERYTHING, "added"])


def test_a_stage_whose_input_is_only_named_like_outputs_is_refused(tmp_path: Path, shards: Path) -> None:
    """The first stage writes nothing, and another run's files lie there since."""
    file = two_stages(tmp_path, shards)
    content = json.loads(file.read_text())
    content["stages"][0]["pipeline"].insert(1, {"nothing:none": {"folder": str(tmp_path / "middle")}})
    (tmp_path / "nothing.py").write_text(
        "import os\n"
        "def none(data, rank, world_size, folder):\n"
        "    open(os.path.join(folder, '00009.jsonl'), 'w').write('{}')\n"
        "    for document in data:\n"
        "        if False: yield document\n"
    )
    file.write_text(json.dumps(content))
    with pytest.raises(StaggerError, match=r"1 of 1 file of its input.*filter has written nothing"):
        go(file)


def test_a_stage_is_not_planned_without_an_output_that_is_gone(tmp_path: Path, shards: Path) -> None:
    """It would read less than was written, also once that output is made again."""
    file = two_stages(tmp_path, shards)
    launch(load_file(str(file)), Wishes(limit=1))
    folder, record = RunFolder.open(str(tmp_path / "run"), {})
    retry(folder, record, stage="filter")
    (tmp_path / "middle" / "00003.jsonl").unlink()
    with pytest.raises(RunFailed, match="missing or changed"):
        go(file)
    retry(*RunFolder.open(str(tmp_path / "run"), {}), lost=True)
    go(file)
    assert output_ids(tmp_path / "end") == EVERYTHING


def test_a_stage_that_does_not_wait_for_what_it_reads_is_refused(tmp_path: Path, shards: Path) -> None:
    file = two_stages(tmp_path, shards)
    go(file)
    content = json.loads(file.read_text())
    del content["stages"][1]["depends"]
    content["run_dir"] = str(tmp_path / "other")
    file.write_text(json.dumps(content))
    with pytest.raises(StaggerError, match=r"merge reads files that filter writes.*depends: \[filter\]"):
        go(file)


def test_stages_that_would_replace_one_anothers_outputs_are_refused(tmp_path: Path, shards: Path) -> None:
    """Also if a link leads to the folder. Other names are no matter."""
    file = two_stages(tmp_path, shards, glob="0*")
    content = json.loads(file.read_text())
    (tmp_path / "middle").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "middle")
    writer = content["stages"][1]["pipeline"][1]["write_jsonl"]
    writer["path"] = str(tmp_path / "link")
    file.write_text(json.dumps(content))
    with pytest.raises(StaggerError, match=r"The stages filter and merge would write the same files, \{rank\}\.jsonl"):
        go(file)
    writer["filename"] = "merged-{rank}.jsonl"
    file.write_text(json.dumps(content))
    go(file)
    go(file, overwrite=True)
    assert names(tmp_path / "middle") == [*NAMES, "merged-00000.jsonl"]


def test_from_python(tmp_path: Path, shards: Path) -> None:
    def run(name: str, tasks: int, **wishes: bool) -> None:
        steps: list[Step] = [ReadJsonl(str(shards)), WriteJsonl(str(tmp_path / "out"))]
        LocalExecutor(steps, run_dir=str(tmp_path / name), tasks=tasks).run(**wishes)

    run("one", 3)
    with pytest.raises(StaggerError, match="overwrite=True"):
        run("two", 2)
    run("two", 2, overwrite=True)
    assert output_ids(tmp_path / "out") == EVERYTHING


@pytest.mark.parametrize("engine", ["s3fs", "obstore"])
def test_on_s3(cli: Cli, loaded: Bucket, pipeline_file: PipelineFiles, engine: str) -> None:
    cli.env |= loaded.env
    options = {"s3": {"engine": engine}}
    cli("launch", on_s3(pipeline_file, loaded, storage_options=options), check=0)
    loaded.files.pipe(f"{loaded.name}/output/notes.txt", b"mine")
    two = on_s3(pipeline_file, loaded, "two", storage_options=options, tasks=2, run_dir=f"{loaded.url}/two")
    assert f"two: 4 files in {loaded.url}/output" in cli("launch", two, check=2).err
    cli("launch", two, "--overwrite", check=0)
    assert sorted(objects(loaded, "output")) == ["00000.jsonl.zst", "00001.jsonl.zst", "notes.txt"]
