"""A cluster with the rules of real sites (tests/cluster/site.sh), used by ordinary users."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, STEPS, documents, jsonl, output_ids, until
from tests.kit.runs import counts, launches, status
from tests.kit.users import User, as_user, need_root
from tests.slurm.conftest import started

EVERYTHING = sorted(f"doc-{i}" for i in range(200))

#: What the site asks of every job.
RULES = {"type": "slurm", "time": 2, "mem_per_cpu_gb": 0.25}


class Site:
    """The cluster, an ordinary user of it, and another one who may have five jobs at once."""

    def __init__(self, folder: Path, slurm_conf: str) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": slurm_conf}
        self.user, self.limited = (self._user(name) for name in ("games", "news"))
        (folder / "input").mkdir()
        for shard in range(4):
            (folder / "input" / f"{shard}.jsonl").write_bytes(jsonl(documents(shard * 50, 50)))

    def _user(self, name: str) -> User:
        entry = pwd.getpwnam(name)
        home = self.folder / name
        home.mkdir()
        shutil.copy(STEPS, home / "my_steps.py")
        user = User(entry.pw_uid, entry.pw_gid, home, **self.env)
        user.owns(home)
        return user

    def stage(self, name: str, source: str, *steps: object, executor: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A stage that reads the folder `source` and writes the folder `name`; both are relative to the user's."""
        pipeline = [{"read_jsonl": {"path": source}}, *steps, {"write_jsonl": {"path": name, "compression": None}}]
        return {"name": name, "tasks": 4, "pipeline": pipeline, "executor": {**RULES, **executor}, **more}

    def launch(
        self, user: User, *stages: dict[str, Any], wait: bool = False, check: int | None = 0, **more: Any
    ) -> str:
        """Launch a run of these stages. Returns what the command said of it as an error."""
        content = {"name": "p", "run_dir": "run", "randomize_start_duration": 0, "stages": list(stages), **more}
        (user.folder / "p.yaml").write_text(json.dumps(content))
        return user("launch", "p.yaml", *(["--wait"] if wait else []), check=check).err

    def slurm(self, *command: str, user: User | None = None) -> str:
        """The output of a command of Slurm, run by root or by a user."""
        before = as_user(user.number, user.group) if user else []
        env = {**os.environ, **self.env}
        return subprocess.run([*before, *command], env=env, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def site_conf() -> str:
    need_root()
    return started(STAGGER_CLUSTER_SITE="1")


@pytest.fixture
def site(site_conf: str) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="stagger-site-"))
    folder.chmod(0o755)
    site = Site(folder, site_conf)
    yield site
    for user in ("games", "news"):
        site.slurm("scancel", "--user", user)
    until(lambda: site.slurm("squeue", "--all", "--noheader") == "", "all jobs to end")
    shutil.rmtree(folder)


HOLD = {"my_steps:hold": {"flag": "go"}}


def test_stages_with_retries_go_through_partitions_that_have_rules_for_every_job(site: Site) -> None:
    funded = {"partition": "funded", "account": "team", "sbatch": {"comment": "words", "constraint": "ib"}}
    stages = [
        site.stage(
            "first",
            "../input",
            {"my_steps:fail_once": {"ranks": [1, 2], "flag": "failed"}},
            executor={"partition": "gpu", "gpus_per_task": 1},
            retries={"max": 2},
        ),
        site.stage("second", "first", executor=funded, depends=["first"]),
        site.stage("third", "second", executor={"partition": "whole"}, depends=["second"]),
    ]
    site.launch(site.user, *stages, wait=True)
    assert [record["ranks"] for record in launches(site.user.folder / "run" / "first")] == ["0-3", "1-2"]
    assert output_ids(site.user.folder / "third") == EVERYTHING


def test_jobs_in_a_hidden_partition_are_found_and_cancelled(site: Site) -> None:
    run = site.user.folder / "run"
    site.launch(site.user, site.stage("only", "../input", HOLD, executor={"partition": "hidden"}))
    until(lambda: counts(status(site.user, run)) == (0, 0, 4, 0), "all ranks to run")
    assert site.slurm("squeue", "--noheader", user=site.user) == ""
    assert "is queued or running" in site.user("retry", run, "--rank", "0", check=2).err
    assert site.user("cancel", run, check=0).out.count("cancelled Slurm job") == 2
    until(lambda: site.slurm("squeue", "--all", "--noheader") == "", "all jobs to end")
    assert counts(status(site.user, run)) == (0, 0, 0, 4)


def test_jobs_that_a_plug_in_renames_are_found(site: Site) -> None:
    run = site.user.folder / "run"
    site.launch(site.user, site.stage("only", "../input", HOLD, executor={"partition": "cpu"}))
    until(lambda: counts(status(site.user, run)) == (0, 0, 4, 0), "all ranks to run")
    names = site.slurm("squeue", "--noheader", "--format=%j", user=site.user).split()
    assert all(name.startswith(f"u{site.user.number}_only-") for name in names)
    (site.user.folder / "go").touch()
    until(lambda: counts(status(site.user, run)) == (4, 0, 0, 0), "all ranks to be done")


def test_a_launch_whose_later_stage_exceeds_the_users_limit_is_refused_or_runs(site: Site) -> None:
    stages = [
        site.stage("first", "../input", executor={}, tasks=2),
        site.stage("second", "first", executor={}, depends=["first"], tasks=4),
    ]
    said = site.launch(site.limited, *stages, wait=True, check=None)
    assert output_ids(site.limited.folder / "second") == EVERYTHING or "MaxSubmitJobs" in said


def test_a_launch_beyond_the_users_limit_is_refused_before_any_job_is_submitted(site: Site) -> None:
    said = site.launch(site.limited, site.stage("only", "../input", HOLD, executor={}, tasks=5), check=None)
    assert "MaxSubmitJobs" in said
    assert "ranks_per_job" in said
    assert site.slurm("squeue", "--all", "--noheader") == ""


def test_the_next_stage_starts_where_only_short_jobs_can(site: Site) -> None:
    reservation = ["starttime=now+10minutes", "duration=60", "nodes=ALL", "flags=maint", "users=root"]
    site.slurm("scontrol", "create", "reservation", "reservationname=repairs", *reservation)
    brief = {"partition": "cpu", "qos": "brief"}
    stages = [
        site.stage("first", "../input", executor={"partition": "short", "time": 1}),
        site.stage("second", "first", executor=brief, depends=["first"]),
        site.stage("third", "second", executor={"partition": "cpu"}, depends=["second"]),
    ]
    try:
        site.launch(site.user, *stages, wait=True)
    finally:
        site.slurm("scontrol", "delete", "reservationname=repairs")
    assert output_ids(site.user.folder / "third") == EVERYTHING


def test_an_end_job_that_cannot_start_is_explained(site: Site) -> None:
    run = site.user.folder / "run"
    site.launch(
        site.user, site.stage("only", "../input", executor={"partition": "short", "time": 1, "end": {"time": 9}})
    )
    until(lambda: "PartitionTimeLimit" in (said := site.user("status", run).out) and "done" in said, "Slurm's reason")
    assert "it requests more time than is allowed (executor.end.time)" in site.user("status", run).out


def test_where_nodes_may_not_submit_the_waiting_command_starts_the_retries_and_the_next_stage(site: Site) -> None:
    executor = {"partition": "nosubmit", "nodes_submit": False}
    failing = {"my_steps:fail_once": {"ranks": [3], "flag": "failed"}}
    stages = [
        site.stage("first", "../input", failing, executor=executor, retries={"max": 1}),
        site.stage("second", "first", executor=executor, depends=["first"]),
    ]
    site.launch(site.user, *stages, wait=True)
    assert output_ids(site.user.folder / "second") == EVERYTHING


def test_an_end_job_that_cannot_submit_says_so_in_status(site: Site) -> None:
    run = site.user.folder / "run"
    where = {"partition": "nosubmit"}
    stages = [
        site.stage("first", "../input", executor=where),
        site.stage("second", "first", executor=where, depends=["first"]),
    ]
    site.launch(site.user, *stages)
    until(lambda: site.slurm("squeue", "--all", "--noheader") == "", "all jobs to end")
    said = site.user("status", run, check=3).out
    assert "sbatch" in said
    assert f"stagger retry {run}" in said
    site.user("retry", run, "--wait", check=0)
    assert output_ids(site.user.folder / "second") == EVERYTHING


def test_a_colleague_who_may_not_see_the_jobs_is_not_told_that_they_are_lost(site: Site) -> None:
    run = site.user.folder / "run"
    only = site.stage("only", "../input", HOLD, executor={})
    site.launch(site.user, only, shared="group")
    until(lambda: counts(status(site.user, run)) == (0, 0, 4, 0), "all ranks to run")
    site.user.folder.chmod(0o755)
    colleague = User(site.limited.number, site.user.group, site.limited.folder, **site.env)
    assert counts(status(colleague, run))[1] == 0
    said = colleague("status", run, check=3).out
    assert "Slurm hides the jobs of games" in said
    assert "stagger retry" not in said
    assert "only games can cancel them" in colleague("cancel", run, check=1).err


def test_the_profile_of_the_page_for_sites_is_all_that_a_pipeline_file_needs(site: Site) -> None:
    (profile,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "sites.md").read_text(), re.DOTALL)
    folder = site.user.folder / ".config" / "stagger"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(profile)
    site.user.owns(folder.parent)
    stage = site.stage("only", "../input", {"my_steps:fail_once": {"ranks": [0], "flag": "failed"}}, executor={})
    del stage["executor"]
    site.launch(site.user, stage, wait=True)
    assert output_ids(site.user.folder / "only") == EVERYTHING


def test_preempted_jobs_come_back(site: Site) -> None:
    run = site.user.folder / "run"
    site.launch(site.user, site.stage("only", "../input", HOLD, executor={"partition": "scavenge"}))
    until(lambda: all((site.user.folder / f"go-{rank}").exists() for rank in range(4)), "all ranks to be at work")
    submit = ["sbatch", "--partition=whole", "--nodes=2", "--time=1", "--mem=100", "--output=/dev/null"]
    urgent = site.slurm(*submit, "--parsable", "--wrap=sleep 600").strip()
    until(lambda: status(site.user, run)["requeued"] == 4, "all ranks to be preempted")
    (site.user.folder / "go").touch()
    site.slurm("scancel", urgent)
    until(lambda: counts(status(site.user, run)) == (4, 0, 0, 0), "all ranks to be done")
    assert output_ids(site.user.folder / "only") == EVERYTHING
