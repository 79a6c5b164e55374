"""A host's speed is measured once per machine and workload."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stagger.blocks.host import Speed
from stagger.blocks.server.measuring import cache_folder, measured
from stagger.errors import StaggerError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return Path(cache_folder())


def test_a_host_is_measured_once_per_workload(cache: Path) -> None:
    calls: list[str] = []

    def measure(name: str, rps: float = 5.0) -> Speed:
        def once() -> Speed:
            calls.append(name)
            return Speed(rps, 7.0)

        return measured(name, once, 1.0)

    assert measure("a") == measure("a") == Speed(5.0, 7.0)
    assert measure("b", 6.0) == Speed(6.0, 7.0)
    assert calls == ["a", "b"]
    for file in cache.glob("*.json"):
        file.write_bytes(b'{"workload": "a"')
    assert measure("a") == Speed(5.0, 7.0)
    assert calls == ["a", "b", "a"]
    with pytest.raises(StaggerError, match="both must be more than 0"):
        measure("c", 0.0)
    with pytest.raises(StaggerError, match="both must be more than 0"):
        measure("c", float("nan"))


def test_no_link_is_followed_to_where_others_want_a_measurement(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    measured("a", lambda: Speed(5.0, 7.0), 1.0)
    (result,) = cache.glob("*.json")
    result.unlink()
    result.symlink_to(precious)
    assert measured("a", lambda: Speed(6.0, 7.0), 1.0) == Speed(6.0, 7.0)
    assert precious.read_text() == "precious"
    lock = result.with_name(f"{result.name}.lock")
    lock.unlink()
    lock.symlink_to(tmp_path / "new")
    result.unlink()
    with pytest.raises(OSError, match="symbolic links"):
        measured("a", lambda: Speed(6.0, 7.0), 1.0)
    assert not (tmp_path / "new").exists()


def test_a_cache_that_others_can_replace_is_refused(cache: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(StaggerError, match="all users can rename what is in"):
        cache_folder()
    tmp_path.chmod(0o1777)
    assert cache_folder() == str(cache)
    cache.chmod(0o720)
    with pytest.raises(StaggerError, match="others may write there"):
        cache_folder()


def test_servers_of_a_machine_measure_one_after_another_and_wait_no_longer_than_told(cache: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    path = holder.stdout.readline().strip()
    with pytest.raises(StaggerError, match=r"has been measuring for 0\.2 s"):
        measured("held", lambda: Speed(1.0, 1.0), 0.2)
    holder.kill()  # The kernel releases the lock.
    holder.wait()
    assert measured("held", lambda: Speed(1.0, 1.0), 5.0) == Speed(1.0, 1.0)
    assert Path(path).exists()


HOLD = """
import hashlib, sys, time
from stagger.blocks.server.measuring import locked
path = f"{sys.argv[1]}/{hashlib.sha256(b'held').hexdigest()[:24]}.json.lock"
with locked(path, 1, time.sleep):
    print(path, flush=True)
    sys.stdin.read()
"""


def test_a_cache_that_others_can_write_is_refused(cache: Path) -> None:
    cache.chmod(0o777)
    with pytest.raises(StaggerError, match="others may write there: remove it"):
        measured("a", lambda: Speed(1.0, 1.0), 1.0)
