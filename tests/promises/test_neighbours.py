"""Other users of a shared file system: they run no code as the user, end no process, and overwrite no file."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stagger.errors import StaggerError
from stagger.rundir.access import check_folder
from stagger.rundir.lock import process_start
from tests.conftest import STEPS, Cli, PipelineFiles, documents, jsonl, until
from tests.kit.users import STRANGERS, TEAM, User, need_root


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that all users can reach, as none of pytest's can be."""
    need_root()
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stagger-users-"))
    folder.chmod(0o755)
    (folder / "code").mkdir()
    shutil.copy(STEPS, folder / "code" / "my_steps.py")
    (folder / "input").mkdir()
    for shard in range(4):
        (folder / "input" / f"{shard}.jsonl").write_bytes(jsonl(documents(shard * 50, 50)))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def ann(place: Path) -> User:
    return User(61002, TEAM, place)


@pytest.fixture
def bob(place: Path) -> User:
    return User(61003, TEAM, place)


@pytest.fixture
def eve(place: Path) -> User:
    return User(61004, STRANGERS, place)


def pipeline(place: Path, *steps: object, name: str = "run", **more: object) -> Path:
    """A pipeline file whose run and outputs lie in `place`/team."""
    path = place / "code" / f"{name}.yaml"
    content = {
        "name": name,
        "run_dir": str(place / "team" / name),
        "tasks": 2,
        "pipeline": [
            {"read_jsonl": {"path": str(place / "input")}},
            *steps,
            {"write_jsonl": {"path": str(place / "team" / "output")}},
        ],
        "executor": {"type": "local", "workers": 2},
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def team_folder(place: Path, owner: User, mode: int = 0o2775) -> Path:
    folder = place / "team"
    folder.mkdir()
    os.chown(folder, owner.number, owner.group)
    folder.chmod(mode)
    return folder


def modes(folder: Path) -> set[tuple[bool, int, int]]:
    """(is a folder, mode, group) of everything at and below a folder, except bundles: those are private."""
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.rglob("*.bundle"))
    found = [(path.is_dir(), path.stat()) for path in (folder, *folder.rglob("*")) if path.suffix != ".bundle"]
    return {(is_dir, stat.S_IMODE(info.st_mode), info.st_gid) for is_dir, info in found}


SHARED = {(True, 0o2770, TEAM), (False, 0o660, TEAM)}


def test_the_members_of_a_group_launch_and_retry_one_run(place: Path, ann: User, bob: User, eve: User) -> None:
    """Whatever their umasks, each can write all that another one has made, and nobody else can read it."""
    team = team_folder(place, ann)
    flag = place / "team" / "flag"
    file = pipeline(place, {"my_steps:fail_on": {"ranks": [1], "flag": str(flag)}}, shared="group")
    ann("launch", file, check=1)
    assert modes(team / "run") == SHARED
    assert modes(team / "output") == SHARED
    assert bob("status", team / "run", check=1).err == ""
    for command in (("retry", team / "run"), ("launch", file), ("cancel", team / "run")):
        assert "no member" in eve(*command, check=2).err
    flag.touch()
    bob("retry", team / "run", check=0)
    assert modes(team / "run") == SHARED
    assert {path.stat().st_uid for path in (team / "output").iterdir()} == {ann.number, bob.number}
    for user in (ann, bob):
        assert "2 of 2 ranks are already done" in user("launch", file, check=0).err
    assert modes(team / "run") == SHARED


def test_the_members_of_a_group_wait_for_each_other_and_stop_their_own_processes(
    place: Path, ann: User, bob: User, eve: User
) -> None:
    team = team_folder(place, bob)
    flag = team / "flag"
    file = pipeline(place, {"my_steps:hold": {"flag": str(flag)}}, shared="group")
    launch = ann.start("launch", file)
    until((team / "flag-0").exists, "the launch to run")
    assert f"is in use by process {launch.pid} of user 61002" in bob("retry", team / "run", check=2).err
    assert "only user 61002 can stop that process" in bob("cancel", team / "run", check=2).err
    assert launch.poll() is None
    assert f"stopped process {launch.pid}" in ann("cancel", team / "run", check=0).out
    launch.communicate(timeout=60)
    flag.touch()
    bob("retry", team / "run", check=0)


def test_a_member_retries_what_another_launched_from_python(place: Path, ann: User, bob: User) -> None:
    team = team_folder(place, ann)
    script = place / "code" / "script.py"
    script.write_text(
        "import os, sys\n"
        "from stagger import LocalExecutor, ReadJsonl, WriteJsonl\n"
        f"place = {str(place)!r}\n"
        "def wait(data, rank, world_size):\n"
        "    if not os.path.exists(place + '/flag'): raise ValueError('not yet')\n"
        "    yield from data\n"
        "steps = [ReadJsonl(place + '/input'), wait, WriteJsonl(place + '/team/output')]\n"
        "before = os.umask(0o027)\n"
        "try:\n"
        "    LocalExecutor(steps, run_dir=place + '/team/run', tasks=2, shared='group').run()\n"
        "finally:\n"
        "    assert os.umask(0o027) == 0o027\n"
    )
    process = ann.python(script)
    assert "; see more with: stagger logs" in process.communicate(timeout=60)[1]
    assert modes(team / "run") == SHARED
    (place / "flag").touch()
    bob("retry", team / "run", check=0)


@pytest.mark.parametrize("command", ["retry", "cancel", "launch"])
def test_nothing_in_another_users_run_is_trusted(place: Path, ann: User, eve: User, cli: Cli, command: str) -> None:
    """Neither its modules nor the process that its lock names. Reading it stays allowed."""
    run = team_folder(place, ann) / "run"
    file = pipeline(place)
    ann("launch", file, "--limit", 1, check=0)
    run.chmod(0o755)
    (place / "code" / "my_steps.py").write_text(f"open({str(place / 'ran')!r}, 'w')\n")
    bystander = subprocess.Popen(["sleep", "100"])
    lock = {"host": socket.gethostname(), "pid": bystander.pid, "process_started": process_start(bystander.pid)}
    (run / "lock").write_text(json.dumps({**lock, "user": "x", "time": 0}))
    ann.owns(run, place / "code")
    try:
        said = cli(command, file if command == "launch" else run, check=2).err
        assert f"{run} belongs to user 61002" in said
        assert "as root. Run the command as that user: sudo -u" in said
        assert f"{run} belongs to user 61002" in eve(command, file if command == "launch" else run, check=2).err
        assert bystander.poll() is None
        assert not (place / "ran").exists()
        assert "1 done" in cli("status", run, check=3).out
        assert "rank 0" in cli("logs", run, "--rank", 0, check=0).out
    finally:
        bystander.kill()
        bystander.wait()


def test_a_run_directory_that_others_can_write_is_refused(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", pipeline_file()
    run.mkdir()
    for mode in (0o777, 0o775, 0o1777):
        run.chmod(mode)
        assert f"chmod -R go-w {run}" in cli("launch", file, check=2).err
    assert list(run.iterdir()) == []
    run.chmod(0o755)
    cli("launch", file, "--limit", 1, check=0)
    for place, command in (("", "retry"), ("", "cancel"), ("launches", "retry"), ("run.json", "launch")):
        path = run / place
        before = path.stat().st_mode
        path.chmod(0o777)
        assert f"chmod -R go-w {run}" in cli(command, file if command == "launch" else run, check=2).err
        path.chmod(before)


def test_what_others_have_put_into_a_run_is_refused(place: Path, ann: User, eve: User) -> None:
    """They could write there once. Now the folder is private again."""
    run = team_folder(place, ann) / "run"
    ann("launch", pipeline(place), "--limit", 1, check=0)
    for name in ("run.json", "lock", "plan", "launches/1", "launches/1/launch.json", "completions"):
        planted, aside = run / name, place / "aside"
        planted.rename(aside) if planted.exists() else aside.write_text("{}")
        planted.symlink_to(aside)
        os.chown(planted, eve.number, eve.group, follow_symlinks=False)
        assert f"{planted} belongs to user 61004" in ann("retry", run, check=2).err
        planted.unlink()
        aside.rename(planted)
        os.chown(planted, eve.number, eve.group)
        assert f"{planted} belongs to user 61004" in ann("cancel", run, check=2).err
        os.chown(planted, ann.number, ann.group)
    (run / "lock").unlink()
    ann("retry", run, check=0)


def test_a_folder_of_logs_that_leads_elsewhere_is_refused(place: Path, ann: User, eve: User) -> None:
    run = team_folder(place, ann) / "run"
    ann("launch", pipeline(place), "--limit", 1, check=0)
    (run / "logs" / "00001").symlink_to(place / "code")
    os.chown(run / "logs" / "00001", eve.number, eve.group, follow_symlinks=False)
    assert "logs/00001 belongs to user 61004" in ann("retry", run, check=2).err


def test_where_all_can_rename_folders_no_run_is_safe(place: Path, ann: User) -> None:
    team = team_folder(place, ann, 0o777)
    assert f"all users can rename what is in {team}" in ann("launch", pipeline(place), check=2).err
    team.chmod(0o1777)
    ann("launch", pipeline(place), check=0)


def test_a_link_in_a_folder_for_all_is_followed_for_its_owner_alone(place: Path, ann: User, eve: User) -> None:
    home = place / "home"
    home.mkdir()
    ann.owns(home)
    team = team_folder(place, User(0, 0, place), 0o1777)
    (team / "run").symlink_to(home)
    for owner, status in ((eve, 2), (ann, 0)):
        os.chown(team / "run", owner.number, owner.group, follow_symlinks=False)
        said = ann("launch", pipeline(place), check=status).err
        assert ("is a link that belongs to user 61004" in said) == (status == 2)


def test_a_shared_run_is_one_for_members_alone(place: Path, ann: User, bob: User, cli: Cli) -> None:
    """Neither root, nor a run whose mode says otherwise, nor a file of another group."""
    team = team_folder(place, ann)
    file = pipeline(place, shared="group")
    ann("launch", file, "--limit", 1, check=0)
    said = cli("retry", team / "run", check=2).err
    assert "is shared by the group 61010: stagger would run their code as root, who is no member" in said
    plan = next((team / "run" / "plan").iterdir())
    os.chown(plan, 61004, STRANGERS)
    assert f"{plan} belongs to user 61004" in bob("retry", team / "run", check=2).err
    os.chown(plan, ann.number, TEAM)
    (team / "run").chmod(0o2750)
    assert "needs 2770" in bob("retry", team / "run", check=2).err


def test_a_private_run_does_not_become_a_shared_one_unnoticed(place: Path, ann: User) -> None:
    run = team_folder(place, ann) / "run"
    ann("launch", pipeline(place), "--limit", 1, check=0)
    assert "chmod g+s" in ann("launch", pipeline(place, shared="group"), check=2).err
    subprocess.run(["chmod", "-R", "g+rwX,o-rwx", run], check=True)
    subprocess.run(["find", run, "-type", "d", "-exec", "chmod", "g+s", "{}", "+"], check=True)
    ann("launch", pipeline(place, shared="group"), check=0)
    assert "can be written by the group 61010" in ann("launch", pipeline(place), check=2).err


def test_root_is_told_whose_modules_it_imports(place: Path, ann: User, cli: Cli) -> None:
    (place / "team").mkdir()
    ann.owns(place / "code")
    assert f"imported from {place / 'code'}, which belongs to user 61002" in cli("launch", pipeline(place), check=0).err


def test_a_private_run_lets_nobody_write_whatever_the_umask(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "run").mkdir(0o755)
        cli("launch", pipeline_file(), check=0)
    finally:
        os.umask(before)
    private = (False, 0o600)  # The settings of the tasks.
    assert {(is_dir, mode) for is_dir, mode, _ in modes(tmp_path / "run")} == {(True, 0o755), (False, 0o644), private}


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder"])
def test_what_lies_at_the_name_of_a_log_is_left_alone(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, kind: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    log = tmp_path / "run" / "logs" / "00001" / "1.log"
    log.parent.mkdir(parents=True)
    plants: dict[str, Callable[[], object]] = {
        "link": lambda: log.symlink_to(precious),
        "dangling link": lambda: log.symlink_to(tmp_path / "new"),
        "hard link": lambda: log.hardlink_to(precious),
        "pipe": lambda: os.mkfifo(log),
        "folder": lambda: log.mkdir(),
    }
    plants[kind]()
    said = cli("launch", pipeline_file(), check=1).err
    assert f"The log {log}" in said
    assert precious.read_text() == "precious\n"
    assert not (tmp_path / "new").exists()
    assert len(list((tmp_path / "run" / "completions").iterdir())) == 3


@pytest.mark.parametrize("name", ["run.json", "completions/00000.json", "failures/00001.1.json", "lock"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_place_of_a_record_stops_no_command(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path, name: str, kind: str
) -> None:
    file = pipeline_file(steps=({"my_steps:fail_on": {"ranks": [1]}},))
    cli("launch", file, check=1)
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    said = cli("status", tmp_path / "run").err
    assert "Traceback" not in said
    assert str(path) in said or name != "run.json"


def test_jobs_write_into_no_folder_that_others_can_write(tmp_path: Path) -> None:
    """Slurm follows links when it opens the output of a job."""
    folder = tmp_path / "launch-1"
    folder.mkdir(0o700)
    check_folder(str(folder), shared=False)
    folder.chmod(0o777)
    with pytest.raises(StaggerError, match="can be written by all users"):
        check_folder(str(folder), shared=False)


def test_cancel_ends_no_process_that_is_not_proven_to_be_the_runs(
    cli: Cli, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    """Its number may be another process's by now."""
    cli("launch", pipeline_file(), check=0)
    bystander = subprocess.Popen(["sleep", "100"])
    lock = {"host": socket.gethostname(), "pid": bystander.pid, "process_started": process_start(bystander.pid)}
    (tmp_path / "run" / "lock").write_text(json.dumps({**lock, "user": "x", "time": 0}))
    try:
        said = cli("cancel", tmp_path / "run", check=2).err
        assert "does not have the command line that took the lock: it is not stopped" in said
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
