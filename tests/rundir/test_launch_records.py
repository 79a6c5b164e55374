"""launch.json and end.json: records survive writing and reading; errors name the file and the key of the damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagger.errors import StaggerError
from stagger.rundir.end_record import EndRecord, read_end, write_end
from stagger.rundir.launch_records import (
    ArrayRecord,
    EndJobRecord,
    Group,
    LaunchRecord,
    LocalLaunch,
    SlurmLaunch,
    decode_launch,
    encode_launch,
    latest_launch,
)
from stagger.rundir.stage_folder import StageFolder
from stagger.storage.storage import Storage

COMMON = {"launch": 2, "time": 1.5, "ranks": "0-4", "start_policy": "spread", "window_s": 30, "settings": "{}"}
LOCAL = LocalLaunch(**COMMON, host="here", pid=7, user="me")  # type: ignore[arg-type]
SLURM = SlurmLaunch(
    **COMMON,  # type: ignore[arg-type]
    ranks_per_job=2,
    resources={"cpus_per_task": 1},
    log_dir="/logs",
    arrays=(ArrayRecord("12", "a-1", 2, "0-3", 1), ArrayRecord(None, "a-2", 1, "4", None, 1, 2.0, 1.5)),
    finalize=EndJobRecord("14", "a-end"),
    cancelled_ranks="2-3",
    avoided=("n1", "n2"),
)


@pytest.mark.parametrize("record", [LOCAL, SLURM])
def test_a_record_is_read_as_it_was_written(record: LaunchRecord) -> None:
    assert decode_launch(encode_launch(record), "launch.json") == record


def test_what_a_record_says_of_its_ranks() -> None:
    assert LOCAL.groups == [Group([0, 1, 2, 3, 4])]
    assert SLURM.groups == [Group([0, 1, 2, 3]), Group([4], 1, 2.0, 1.5)]
    assert (LOCAL.cancelled_list, SLURM.cancelled_list) == ([], [2, 3])
    assert (SLURM.output_of(3), SLURM.output_of(9)) == ("/logs/12_1.out", None)
    assert SLURM.submitted("a-2", "13").arrays[1].job_id == "13"


def test_a_launch_that_was_not_cancelled_does_not_mention_it() -> None:
    assert b"cancelled" not in encode_launch(LOCAL)
    assert b'"cancelled"' not in encode_launch(SLURM)


def test_a_refused_launch_is_no_try_of_its_ranks() -> None:
    refused = replace(SLURM, refused="the launch failed: no")
    assert (refused.groups, refused.cancelled_list) == ([], [2, 3])
    assert decode_launch(encode_launch(refused), "launch.json") == refused
    assert latest_launch([SLURM, refused]) is SLURM
    assert latest_launch([refused]) is None
    assert latest_launch([SLURM, LOCAL]) is None


def test_the_record_of_an_end_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = StageFolder(Storage(), str(tmp_path))
    assert read_end(folder, 2) is None
    record = EndRecord("end job 7 on n1", 1.5, 2.5, said=("all 2 ranks are done",), left=("the stage b",))
    write_end(folder, 2, record)
    assert read_end(folder, 2) == record
    write_end(folder, 2, EndRecord("end job 7 on n1", 1.5))
    assert read_end(folder, 2) == EndRecord("end job 7 on n1", 1.5)
    (tmp_path / "launches" / "2" / "end.json").write_text('{"by": "x", "started": "then"}')
    with pytest.raises(StaggerError, match=r"launches/2/end.json is damaged \(started is 'then'\)"):
        read_end(folder, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"executor": "cloud"}, "executor is 'cloud'"),
        ({"launch": None}, "it has no 'launch'"),
        ({"window_s": "30"}, "window_s is '30'"),
        ({"ranks": "0-x"}, "ranks: "),
        ({"cancelled_ranks": "some"}, "ranks: "),
        ({"arrays": 3}, "arrays is 3"),
        ({"arrays": [{"job_id": "12", "jobs": 2, "ranks": "0-4"}]}, r"it has no 'arrays\[0\].name'"),
        ({"arrays": [{"job_id": 12, "name": "a", "jobs": 2, "ranks": "0-4"}]}, r"arrays\[0\].job_id is 12"),
        ({"finalize": "14"}, "finalize is not an object"),
        ({"finalize": {"name": "a-end"}}, "it has no 'finalize.job_id'"),
    ],
)
def test_damage_is_named_by_file_and_key(change: dict[str, Any], message: str) -> None:
    content = {**json.loads(encode_launch(SLURM)), **change}
    data = json.dumps({key: value for key, value in content.items() if value is not None}).encode()
    with pytest.raises(StaggerError, match=f"/run/launch.json is damaged .*{message}"):
        decode_launch(data, "/run/launch.json")
