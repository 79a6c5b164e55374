"""Profiles: where they are found, what they set, what wins over them, and whom they are trusted to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stagger import LocalExecutor, SlurmExecutor
from stagger.errors import StaggerError
from stagger.spec.changes import Changes, changed_spec
from stagger.spec.executors import LocalSpec, SlurmSpec
from stagger.spec.load import load_file
from stagger.spec.models import RunSpec
from tests.conftest import Cli

FILE: dict[str, Any] = {
    "name": "demo",
    "run_dir": "run",
    "pipeline": [{"read_jsonl": {"path": "in"}}, {"write_jsonl": {"path": "out"}}],
}

GPU: dict[str, Any] = {
    "executor": {"partition": "gpu", "time": 10, "env": {"modules": ["gcc"], "setup": ["date"]}},
    "backend_limit": 100,
    "storage_options": {"s3": {"endpoint_url": "http://store", "engine": "s3fs"}},
}


class Files:
    """Configuration files of the three kinds, and pipeline files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.site = folder / "prefix/etc/stagger/config.yaml"
        self.user = folder / "home/stagger/config.yaml"
        self.named = folder / "team/stagger.yaml"
        monkeypatch.setattr(sys, "prefix", str(folder / "prefix"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "home"))
        monkeypatch.chdir(folder)
        (folder / "prefix").mkdir()
        self.monkeypatch = monkeypatch

    def write(self, path: Path, profiles: dict[str, Any], **more: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"profiles": profiles, **more}, sort_keys=False))
        if path == self.named:
            self.monkeypatch.setenv("STAGGER_CONFIG", str(path))
        return path

    def load(self, *assignments: str, changes: dict[str, Any] | None = None, **keys: Any) -> RunSpec:
        (self.folder / "p.yaml").write_text(yaml.safe_dump({**FILE, **keys}, sort_keys=False))
        return load_file("p.yaml", Changes(assignments, **(changes or {})))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(tmp_path, monkeypatch)


def slurm(spec: RunSpec, stage: int = 0) -> SlurmSpec:
    executor = spec.stages[stage].executor
    assert isinstance(executor, SlurmSpec)
    return executor


def test_a_file_takes_what_it_does_not_set_from_its_profile(files: Files) -> None:
    files.write(files.user, {"gpu": GPU})
    spec = files.load(profile="gpu", executor={"type": "slurm", "time": 20, "env": {"setup": ["ulimit -n 4096"]}})
    executor = slurm(spec)
    assert (executor.partition, executor.time) == ("gpu", "20")
    assert (executor.env.modules, executor.env.setup) == (("gcc",), ("ulimit -n 4096",))
    assert (spec.profile, spec.stages[0].backend_limit, spec.stages[0].start_policy) == ("gpu", 100, "spread")
    assert spec.storage_options == GPU["storage_options"]


def test_mappings_are_merged_and_lists_replaced(files: Files) -> None:
    files.write(files.user, {"gpu": GPU})
    spec = files.load(
        profile="gpu",
        storage_options={"s3": {"engine": "obstore"}},
        executor={"type": "slurm", "env": {"modules": ["cuda", "mpi"]}},
    )
    assert spec.storage_options == {"s3": {"endpoint_url": "http://store", "engine": "obstore"}}
    assert slurm(spec).env.modules == ("cuda", "mpi")


def test_later_files_win_key_by_key(files: Files) -> None:
    files.write(files.site, {"gpu": GPU}, default="gpu")
    files.write(files.user, {"gpu": {"executor": {"time": 20, "env": {"setup": []}}}})
    files.write(files.named, {"gpu": {"executor": {"time": 30}}, "other": {}})
    executor = slurm(files.load())
    assert (executor.partition, executor.time, executor.env.modules, executor.env.setup) == ("gpu", "30", ("gcc",), ())


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(files: Files) -> None:
    files.write(files.user, {name: {"executor": {"partition": name}} for name in ("a", "b", "c")}, default="a")
    assert slurm(files.load()).partition == "a"
    assert slurm(files.load(profile="b")).partition == "b"
    assert slurm(files.load(profile="b", changes={"profile": "c"})).partition == "c"
    assert slurm(files.load("profile=c", profile="b")).partition == "c"
    assert slurm(files.load("executor.partition=d", profile="b", executor={"partition": "e"})).partition == "d"
    assert isinstance(files.load(profile="none").stages[0].executor, LocalSpec)
    assert isinstance(files.load(changes={"profile": "none"}).stages[0].executor, LocalSpec)


def test_each_stage_takes_the_profile(files: Files) -> None:
    files.write(files.user, {"gpu": {**GPU, "retries": {"max": 3, "memory_factor": 4}}})
    stages = [
        {"name": "a", "pipeline": FILE["pipeline"], "executor": {"type": "slurm", "env": {"setup": ["true"]}}},
        {"name": "b", "pipeline": FILE["pipeline"], "executor": {"type": "local"}},
        {"name": "c", "pipeline": FILE["pipeline"], "retries": {"max": 1}},
    ]
    (files.folder / "p.yaml").write_text(
        yaml.safe_dump({"name": "demo", "run_dir": "run", "profile": "gpu", "stages": stages})
    )
    spec = load_file("p.yaml")
    assert slurm(spec).env.modules == ("gcc",)
    assert isinstance(spec.stages[1].executor, LocalSpec)
    retries = spec.stages[2].retries
    assert slurm(spec, 2).partition == "gpu"
    assert retries is not None
    assert (retries.max, retries.memory_factor) == (1, 4)
    assert spec.origins["stages.c.retries.memory_factor"] == f"profile gpu ({files.user}:18)"
    assert spec.origins["stages.a.executor.partition"].startswith("profile gpu ")


@pytest.mark.parametrize("kind", [{"type": "local", "workers": 2}, None])
def test_settings_for_slurm_do_not_disturb_a_local_run(files: Files, kind: dict[str, Any] | None) -> None:
    files.write(files.user, {"gpu": {**GPU, "randomize_start_duration": 300, "retries": {"max": 3}}})
    changes = {} if kind else {"executor": "local"}
    spec = files.load(profile="gpu", changes=changes, **({"executor": kind} if kind else {}))
    (stage,) = spec.stages
    assert isinstance(stage.executor, LocalSpec)
    assert (stage.randomize_start_duration, stage.backend_limit, stage.retries) == ("auto", None, None)
    assert spec.storage_options == GPU["storage_options"]


def test_block_servers_take_no_packing_from_a_profile(files: Files) -> None:
    files.write(files.user, {"gpu": {"executor": {"partition": "gpu", "ranks_per_job": 8, "nodes_per_task": 2}}})
    blocks = {"total": 4, "servers": 2, "host": "simulated"}
    raw = {"name": "demo", "run_dir": "run", "profile": "gpu", "blocks": blocks, "executor": {"type": "slurm"}}
    (files.folder / "p.yaml").write_text(yaml.safe_dump(raw))
    executor = slurm(load_file("p.yaml"))
    assert (executor.partition, executor.ranks_per_job, executor.nodes_per_task) == ("gpu", 1, 1)


def test_with_executor_slurm_a_local_file_takes_the_profiles_settings(files: Files) -> None:
    files.write(files.user, {"gpu": GPU})
    spec = files.load(profile="gpu", executor={"type": "local", "workers": 2}, changes={"executor": "slurm"})
    assert (slurm(spec).partition, slurm(spec).workers) == ("gpu", None)
    assert spec.origins["executor.type"] == "--executor"


@pytest.mark.parametrize(
    ("profile", "own", "gone"),
    [
        ({"env": {"venv": "/v"}}, {"env": {"conda": "c"}}, "env.venv"),
        ({"env": {"container": "/c", "container_args": ["--nv"]}}, {"env": {"venv": "/v"}}, "env.container_args"),
        ({"sbatch": {"part": "a"}}, {"partition": "b"}, "sbatch.partition"),
        ({"sbatch": {"mem": "4G"}}, {"mem_per_cpu_gb": 2}, "sbatch.mem"),
        ({"mem_per_cpu_gb": 2}, {"sbatch": {"mem": "4G"}}, "mem_per_cpu_gb"),
        ({"sbatch": {"mem": "4G"}}, {"sbatch": {"mem-per-cpu": "4G"}}, "sbatch.mem"),
        ({"gpus_per_task": 1}, {"sbatch": {"gpus": 2}}, "gpus_per_task"),
        ({"time": 5}, {"sbatch": {"time": 9}}, "time"),
    ],
)
def test_a_setting_of_the_file_replaces_its_alternatives(
    files: Files, profile: dict[str, Any], own: dict[str, Any], gone: str
) -> None:
    files.write(files.user, {"gpu": {"executor": profile}})
    spec = files.load(profile="gpu", executor={"type": "slurm", **own})
    value: Any = slurm(spec).model_dump(mode="json")
    for part in gone.split("."):
        value = value.get(part)
    assert value in (None, 0, [])


def test_an_option_of_sbatch_written_short_replaces_the_one_written_in_full(files: Files) -> None:
    files.write(files.user, {"gpu": {"executor": {"sbatch": {"constraint": "a100", "nice": 5}}}})
    spec = files.load(profile="gpu", executor={"type": "slurm", "sbatch": {"constr": "h100"}})
    assert slurm(spec).sbatch == {"constraint": "h100", "nice": 5}


def test_paths_of_a_profile_start_at_its_file(files: Files) -> None:
    files.write(
        files.named, {"gpu": {"executor": {"env": {"venv": "env"}, "log_dir": "/scratch/logs", "template": "j.j2"}}}
    )
    executor = slurm(files.load(profile="gpu"))
    assert executor.env.venv == str(files.folder / "team/env")
    assert (executor.log_dir, executor.template) == ("/scratch/logs", str(files.folder / "team/j.j2"))


def test_references_are_replaced_as_in_a_pipeline_file(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP", "physics")
    monkeypatch.setenv("KEY", "hunter2hunter2")
    options = {"s3": {"key": "${KEY}", "secret": "${KEY}"}}
    files.write(files.user, {"gpu": {"executor": {"account": "${GROUP}"}, "storage_options": options}})
    spec = files.load(profile="gpu")
    assert (slurm(spec).account, spec.storage_options) == ("physics", options)


def test_where_each_value_came_from(files: Files) -> None:
    files.write(files.user, {"gpu": GPU})
    spec = files.load("executor.time=5", "tasks=3", profile="gpu", executor={"type": "slurm", "qos": "long"})
    assert spec.origins["executor.partition"] == f"profile gpu ({files.user}:4)"
    assert spec.origins["executor.time"] == "--set executor.time"
    assert spec.origins["tasks"] == "--set tasks"
    assert spec.origins["executor.qos"] == "p.yaml:11"
    assert spec.origins["storage_options.s3.engine"] == f"profile gpu ({files.user}:15)"
    assert "executor.account" not in spec.origins


def test_a_retry_keeps_the_settings_of_the_launch(files: Files) -> None:
    files.write(files.user, {"gpu": GPU})
    before = files.load(profile="gpu")
    files.write(files.user, {"gpu": {"executor": {"partition": "other"}}})
    after = changed_spec(before, ["executor.time=50"], None)
    assert (slurm(after).partition, slurm(after).time) == ("gpu", "50")
    assert after.origins["executor.time"] == "stagger retry --set"
    assert after.origins["executor.partition"] == before.origins["executor.partition"]


def broken(files: Files, profile: dict[str, Any], **more: Any) -> None:
    files.write(files.user, {"gpu": profile}, **more)


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"executor": {"partitoin": "a"}}, "{file}:4: executor.partitoin: unknown key; did you mean 'partition'?"),
        ({"partition": "a"}, "{file}:3: partition: this key belongs below `executor:`; move it there."),
        ({"executor": {"time": "soon"}}, "{file}:4: executor.time: 'soon' is not a time that Slurm understands"),
        ({"executor": {"account": "${NOT_SET}"}}, "{file}:4: executor.account: "),
        ({"tasks": 5}, "{file}:3: tasks: unknown key; "),
        ({"backend_limit": -1}, "{file}:3: backend_limit: "),
        ({"storage_options": {"s3": {"secret": "hunter2"}}}, "{file}:5: storage_options.s3.secret: a secret in clear"),
        ({"executor": {"sbatch": {"array": "1"}}}, "{file}:4: executor.sbatch: 'array' is set by stagger itself"),
    ],
)
def test_a_mistake_in_a_profile_is_said_with_its_place(files: Files, profile: dict[str, Any], said: str) -> None:
    files.write(files.user, {"gpu": profile})
    with pytest.raises(StaggerError) as error:
        files.load(profile="gpu")
    assert str(error.value).startswith(said.format(file=files.user))
    files.load()  # The file does not use the profile.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("profiles: [a]", "{file}:1: profiles: "),
        ("profile: {gpu: {}}", "{file}:1: profile: unknown key; did you mean 'profiles'?"),
        ("profiles: {gpu: 3}", "{file}:1: profiles.gpu: "),
        ("- gpu", "{file} is not a configuration file: it must hold the key profiles; it holds a list."),
        ("profiles: {gpu: {}, gpu: {}}", "{file}:1: the key 'gpu' is given twice, first in line 1; keep one."),
        ("default: gup\nprofiles: {gpu: {}}", "{file}:1: default: there is no profile 'gup'; did you mean 'gpu'?"),
        ("a: " + "[" * 200 + "]" * 200, "{file}: more than 100 levels"),
    ],
)
def test_a_mistake_in_a_configuration_file_is_said_with_its_place(files: Files, content: str, said: str) -> None:
    files.write(files.user, {}).write_text(content)
    with pytest.raises(StaggerError) as error:
        files.load()
    assert str(error.value).startswith(said.format(file=files.user))


def test_a_profile_that_is_not_there(files: Files) -> None:
    with pytest.raises(StaggerError) as none:
        files.load(profile="gpu")
    assert str(none.value).startswith("p.yaml:8: profile: there is no profile 'gpu', for no configuration file has any")
    files.write(files.user, {"gpu": GPU})
    with pytest.raises(StaggerError) as wrong:
        files.load(changes={"profile": "gup"})
    assert str(wrong.value) == (
        f"--profile: there is no profile 'gup'; did you mean 'gpu'? Looked in {files.site}, {files.user}"
    )


def test_a_configuration_file_that_is_named_must_be_there(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGGER_CONFIG", str(files.named))
    with pytest.raises(StaggerError, match=r"stagger.yaml cannot be read: .*\$STAGGER_CONFIG names it"):
        files.load()
    monkeypatch.setenv("STAGGER_CONFIG", "")
    files.load()


def writable(files: Files, path: Path) -> None:
    path.chmod(0o666)


def in_an_open_folder(files: Files, path: Path) -> None:
    path.parent.chmod(0o777)


def of_another_user(files: Files, path: Path) -> None:
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        ("user", writable, "can be written by all users (mode 0666)"),
        ("site", writable, "can be written by all users (mode 0666)"),
        ("named", writable, "can be written by all users (mode 0666)"),
        ("user", in_an_open_folder, "all users can rename what is in"),
        ("user", of_another_user, "belongs to user 12345"),
        ("site", of_another_user, "belongs to user 12345"),
    ],
)
def test_a_file_that_others_may_change_is_not_trusted(
    files: Files, kind: str, spoil: Callable[[Files, Path], None], said: str
) -> None:
    if spoil is of_another_user and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    path = files.write(getattr(files, kind), {"gpu": GPU})
    spoil(files, path)
    with pytest.raises(StaggerError) as error:
        files.load()
    assert said in str(error.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_of_the_installation_and_of_a_named_file_are_trusted(files: Files) -> None:
    of_another_user(files, files.write(files.site, {"gpu": GPU}))
    of_another_user(files, files.folder / "prefix")
    of_another_user(files, files.write(files.named, {"team": GPU}))
    assert files.load(profile="team").profile == "team"


def test_a_python_run_takes_a_profile(files: Files) -> None:
    files.write(files.user, {"gpu": {**GPU, "executor": {**GPU["executor"], "cpus_per_task": 4}}}, default="gpu")
    (files.folder / "in").mkdir()
    executor = SlurmExecutor([print], run_dir="run", profile="gpu", time=30, env={"setup": []})
    found = slurm(executor.spec)
    assert (found.partition, found.time, found.cpus_per_task, found.env.modules) == ("gpu", "30", 4, ("gcc",))
    assert executor.spec.origins["executor.time"] == "SlurmExecutor"
    assert slurm(SlurmExecutor([print], run_dir="run", cpus_per_task=1).spec).cpus_per_task == 1
    assert SlurmExecutor([print], run_dir="run", profile="none").spec.profile is None
    assert isinstance(LocalExecutor([print], run_dir="run", profile="gpu").spec.stages[0].executor, LocalSpec)
    with pytest.raises(StaggerError, match="SlurmExecutor: profile: there is no profile 'gup'; did you mean 'gpu'"):
        SlurmExecutor([print], run_dir="run", profile="gup")


def test_the_schema_of_configuration_files(cli: Cli) -> None:
    schema = cli("schema", "--profiles", check=0).json
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate({"profiles": {"gpu": {**GPU, "executor": {"type": "slurm", "partition": "gpu"}}}})
    assert not validator.is_valid({"profiles": {"gpu": {"tasks": 4}}})


@pytest.mark.parametrize("command", [("launch", "--dry-run"), ("plan",), ("launch",)])
def test_commands_take_a_profile(
    cli: Cli, tmp_path: Path, shards: Path, pipeline_file: Any, command: tuple[str, ...]
) -> None:
    config = tmp_path / "team.yaml"
    config.write_text(yaml.safe_dump({"profiles": {"gpu": {"executor": {"type": "local", "workers": 3}}}}))
    pipeline_file(executor={"type": "local"})
    ran = cli(*command, "run.yaml", "--profile", "gpu", "--json", check=0, STAGGER_CONFIG=str(config))
    where = f"profile gpu ({config}:5)"
    if command == ("launch", "--dry-run"):
        assert ran.json["origins"]["executor.workers"] == where
        text = cli(*command, "run.yaml", "--profile", "gpu", check=0, STAGGER_CONFIG=str(config)).out
        assert f"settings     executor.workers  {where}" in text
    elif command == ("launch",):
        assert json.loads((tmp_path / "run/run.json").read_text())["spec"]["origins"]["executor.workers"] == where
    assert cli(*command, "run.yaml", "--profile", "gup", check=2, STAGGER_CONFIG=str(config)).err.startswith(
        "stagger: --profile: there is no profile 'gup'; did you mean 'gpu'?"
    )
