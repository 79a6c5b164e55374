"""The value of a secret is nowhere but in the environment and in the steps that use it."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from stagger.bundle import task_arguments
from tests.conftest import Cli, PipelineFiles, Ran, until
from tests.kit.runs import counts, status

#: Where a reference stands: storage options. `@` is a reference to a variable of its own.
OPTIONS: dict[str, Any] = {
    "s3": {
        "secret": "@",
        "key": "@",
        "token": "@",
        "client_kwargs": {"aws_secret_access_key": "@", "headers": {"Authorization": "Bearer @"}},
        "config_kwargs": {"proxies": {"https": "http://user:@@proxy:3128"}},
        "endpoint_url": "https://@@host/x",
        "profiles": [{"secret": "@"}, ["@"]],
    },
    "http": {
        "headers": {"Authorization": "Basic @", "X-Mine": "@"},
        "cookies": {"session": "@"},
        "auth": ["@", "@"],
        "url": "https://host/x?sig=@",
    },
    "az": {
        "account_key": "@",
        "connection_string": "AccountName=x;AccountKey=@;EndpointSuffix=y",
        "sas_token": "sig=@",
    },
    "gcs": {"token": {"type": "service_account", "private_key": "@"}},
    "ftp": {"password": "@", "user": "@"},
}

#: Parameters of a step.
PARAMS: dict[str, Any] = {
    "api_key": "@",
    "password": "@",
    "headers": {"Authorization": "Bearer @", "X-Other": "@"},
    "pairs": [["Authorization", "@"], ["X-Api-Key", "@"]],
    "nested": [{"deep": [{"token": "@"}]}],
    "url": "https://user:@@host/x?token=@",
    "credentials": {"user": "@", "pass": "@"},
    "plain": "@",
}

STEP = """
import json, os, pathlib, time

class Call:
    def __init__(self, flag, **options):
        self.flag, self.options = flag, options

    def __call__(self, data, rank, world_size):
        assert "${" not in repr(self.options)
        pathlib.Path(f"{self.flag}.seen").write_text(repr(self.options))
        while not os.path.exists(self.flag):
            time.sleep(0.05)
        if "works" not in pathlib.Path(self.flag).read_text():
            raise ValueError(f"the service answered 403 to {self.options} at https://u:{self.options['password']}@h")
        yield from data

def broken(api_key):
    raise ValueError(f"no such key: {api_key}")
"""


class Planted:
    """Puts a reference to its own variable in place of each `@`, and finds their values."""

    def __init__(self) -> None:
        self.env: dict[str, str] = {}

    def plant(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.plant(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plant(item) for item in value]
        text = ""
        for place, part in enumerate(value.replace("@@", "@\0").split("@")):
            text += (self.reference() if place else "") + part.replace("\0", "@", 1)
        return text

    def reference(self) -> str:
        name = f"MY_TOKEN_{len(self.env)}"
        self.env[name] = f"hunter{len(self.env):02d}-{os.urandom(6).hex()}"
        return f"${{{name}}}"

    def found(self, text: bytes | str) -> list[str]:
        data = text if isinstance(text, bytes) else text.encode()
        return [name for name, value in self.env.items() if value.encode() in data]

    def assert_in_no_file(self, folder: Path) -> None:
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        assert {str(path): found for path in files if (found := self.found(path.read_bytes()))} == {}

    def assert_not_said(self, ran: Ran) -> Ran:
        assert self.found(ran.out + ran.err) == []
        return ran

    def assert_on_no_command_line(self) -> None:
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    assert self.found((process / "cmdline").read_bytes()) == []
                except (FileNotFoundError, ProcessLookupError):
                    continue


@pytest.fixture
def planted(cli: Cli, tmp_path: Path) -> Planted:
    (tmp_path / "calls.py").write_text(STEP)
    return Planted()


def test_thirty_secrets_are_in_no_file_no_output_and_no_command_line(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, planted: Planted
) -> None:
    """A run that fails with all of them in its error, is looked at in every way, and is tried again."""
    flag, run = tmp_path / "flag", tmp_path / "run"
    options = planted.plant(OPTIONS)
    step = {"calls:Call": {"flag": str(flag), **planted.plant(PARAMS)}}
    file = pipeline_file(tasks=1, steps=(step,), storage_options=options)
    assert len(planted.env) > 30
    cli.env |= planted.env

    def say(*command: Any, check: int = 0) -> Ran:
        return planted.assert_not_said(cli(*command, check=check))

    for more in ((), ("--json",), ("--executor", "slurm"), ("--executor", "slurm", "--json")):
        say("launch", file, "--dry-run", *more)
    launched = cli.start("launch", file)
    seen = tmp_path / "flag.seen"
    resolved = until(lambda: seen.exists() and seen.read_text(), "the step to have its parameters")
    assert len(planted.found(resolved)) == len(planted.env) - str(options).count("${")
    (tmp_path / "flag.seen").unlink()
    planted.assert_on_no_command_line()
    say("status", run, check=3)
    planted.assert_in_no_file(run)
    flag.write_text("fails")
    out, err = launched.communicate(timeout=60)
    assert launched.returncode == 1
    planted.assert_not_said(Ran(1, out, err))
    for command in (("status", run), ("status", run, "--json"), ("logs", run, "--failed"), ("logs", run, "--rank", 0)):
        ran = say(*command, check=1 if command[0] == "status" else 0)
        assert "403" in ran.out or command[0] == "status"
    say("retry", run, check=1)
    planted.assert_in_no_file(run)
    failure = json.loads((run / "failures" / "00000.1.json").read_text())
    assert "the service answered 403 to {'api_key': '[secret]'" in failure["error"]
    assert "[secret]" in failure["traceback"]
    flag.write_text("works")
    say("retry", run)
    assert counts(status(cli, run)) == (1, 0, 0, 0)
    planted.assert_in_no_file(run)
    planted.assert_in_no_file(tmp_path / "run-output")
    assert "${MY_TOKEN_0}" in (run / "run.json").read_text()


def test_the_settings_of_a_task_are_a_private_file(cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    file = pipeline_file(tasks=1, steps=({"my_steps:hold": {"flag": str(tmp_path / "flag")}},))
    launched = cli.start("launch", file)
    settings = tmp_path / "run" / "launches" / "1" / "settings.json"

    def task() -> list[bytes]:
        for process in Path("/proc").iterdir():
            words = b""
            try:
                words = (process / "cmdline").read_bytes() if process.name.isdecimal() else b""
            except OSError:
                continue
            if b"stagger.task" in words and str(tmp_path).encode() in words:
                return words.split(b"\0")[1:-1]
        return []

    words = until(task, "the task to start")
    assert words == [*map(str.encode, task_arguments()), str(settings).encode(), b"-", b"0"]
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    launched.terminate()
    launched.communicate(timeout=60)


def test_an_error_at_launch_holds_no_secret(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, planted: Planted
) -> None:
    (tmp_path / "readers.py").write_text(
        "import stagger\nclass Read(stagger.Reader):\n"
        "    def __init__(self, api_key):\n"
        "        raise ValueError(f'no such key: {api_key}')\n"
        "    def find_shards(self, storage):\n"
        "        return []\n"
    )
    file = pipeline_file(tasks=1)
    content = json.loads(file.read_text())
    content["pipeline"][0] = {"readers:Read": planted.plant({"api_key": "@"})}
    file.write_text(json.dumps(content))
    cli.env |= planted.env
    said = planted.assert_not_said(cli("launch", file, check=2)).err
    assert "pipeline[0] (readers:Read) cannot be created: ValueError: no such key: [secret] (readers.py:" in said


def test_a_variable_that_is_gone_stops_a_retry(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, planted: Planted
) -> None:
    flag = tmp_path / "flag"
    flag.write_text("fails")
    step = {"calls:Call": {"flag": str(flag), "password": "${PASSWORD}"}}
    cli.env["PASSWORD"] = "hunter22"
    file = pipeline_file(tasks=1, steps=(step,), storage_options={"s3": {"secret": "${PASSWORD}"}})
    cli("launch", file, check=1)
    del cli.env["PASSWORD"]
    assert (
        "storage_options.s3.secret: The environment variable PASSWORD is not set"
        in cli("retry", tmp_path / "run", check=2).err
    )
    file = pipeline_file(tasks=1, steps=(step,))
    assert (
        "pipeline[1].calls:Call.password: The environment variable PASSWORD is not set"
        in cli("launch", file, check=2).err
    )
    assert not (tmp_path / "run" / "launches" / "2").exists()


def test_outputs_stay_where_they_are_when_a_variable_changes(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    cli.env["OUT"] = f"{tmp_path}/one"
    file = pipeline_file(output="${OUT}")
    cli("launch", file, "--limit", 1, check=0)
    cli.env["OUT"] = f"{tmp_path}/two"
    for command in (("launch", file), ("retry", tmp_path / "run")):
        said = cli(*command, check=2).err
        assert f"its outputs would go to {tmp_path}/two, but this run has {tmp_path}/one" in said
    assert not (tmp_path / "two").exists()
    cli.env["OUT"] = f"{tmp_path}/one"
    cli("retry", tmp_path / "run", check=0)
    assert len(list((tmp_path / "one").iterdir())) == 4


def test_the_address_of_an_output_holds_no_secret(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, planted: Planted
) -> None:
    """The completion record of a rank names each of its outputs."""
    file = pipeline_file(output=planted.plant("memory://user:@@host/out"))
    cli.env |= planted.env
    said = planted.assert_not_said(cli("launch", file, check=2)).err
    assert "the folder of its outputs holds a secret (a URL with a password)" in said
    assert not (tmp_path / "run").exists()


def test_python_steps_use_references_too(cli: Cli, shards: Path, tmp_path: Path, planted: Planted) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from stagger import LocalExecutor, ReadJsonl\n"
        "def fail(data, rank, world_size):\n"
        "    import os\n"
        "    from stagger.storage.storage import Storage\n"
        f"    Storage({planted.plant({'memory': {'secret': '@'}})!r}).read('memory://x')\n"
        f"options = {planted.plant({'memory': {'secret': '@'}})!r}\n"
        "LocalExecutor([ReadJsonl('input'), fail], run_dir='run', storage_options=options).run()\n"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={**cli.env, **planted.env}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert planted.found(done.stdout + done.stderr) == []
    planted.assert_in_no_file(tmp_path / "run")
