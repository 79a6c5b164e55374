"""A host's speed is measured once per machine and workload."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stagger.blocks.host import Speed
from stagger.blocks.server.measuring import LOCK, cache_folder, devices, measured, refined, remember, throughputs
from stagger.errors import StaggerError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
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
    with pytest.raises(StaggerError, match="each rate must be more than 0"):
        measure("c", 0.0)
    with pytest.raises(StaggerError, match="each rate must be more than 0"):
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
    lock = result.with_name(LOCK)
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
import sys, time
from stagger.blocks.server.measuring import LOCK, locked
path = f"{sys.argv[1]}/{LOCK}"
with locked(path, 1, time.sleep):
    print(path, flush=True)
    sys.stdin.read()
"""


def test_a_cache_that_others_can_write_is_refused(cache: Path) -> None:
    cache.chmod(0o777)
    with pytest.raises(StaggerError, match="others may write there: remove it"):
        measured("a", lambda: Speed(1.0, 1.0), 1.0)


def test_servers_measure_once_for_each_kind_of_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = [tmp_path / "0" / "information", tmp_path / "1" / "information"]
    for file in kinds:
        file.parent.mkdir()
        file.write_text("Model: \t NVIDIA A100-SXM4-40GB\nIRQ: 7\n")
    monkeypatch.setattr("stagger.blocks.server.measuring.NVIDIA", str(tmp_path / "*" / "information"))

    def kind(visible: str, name: str | None = None) -> str:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return devices(name)

    assert kind("0") == kind("3") == "1 x NVIDIA A100-SXM4-40GB"
    assert kind("0,1") == "2 x NVIDIA A100-SXM4-40GB"
    assert kind("0", "NVIDIA L4") == "1 x NVIDIA L4"
    assert kind("MIG-b5", "NVIDIA A100") != kind("MIG-c6", "NVIDIA A100"), "slices may differ in size"
    kinds[1].write_text("Model: \t NVIDIA T4\n")
    assert kind("0") != kind("1"), "which of the two it is, the driver does not tell"
    for file in kinds:
        file.unlink()
    assert kind("0") == kind("1") == "1 GPU"
    assert "core" in kind("")


def test_what_was_served_refines_what_was_measured(cache: Path) -> None:
    speed = measured("a", lambda: Speed(100.0, 50.0, pass_rps=200.0), 1.0)
    better = refined(speed, {"pass_rps": 150.0, "queue": 3, "network_rps": None})
    assert better == Speed(100.0, 50.0, pass_rps=150.0)
    for odd in (0, -1.0, float("nan"), "fast", [1]):
        assert refined(speed, {"forward_rps": odd}) == speed
    remember("a", better)
    assert measured("a", lambda: speed, 1.0) == better, "the next server on this machine begins with it"


def test_passes_count_all_blocks_of_a_span() -> None:
    assert throughputs(Speed(1000.0, 900.0), 4) == (400.0, 250.0)
    assert throughputs(Speed(1000.0, 900.0, pass_rps=800.0), 4) == (200.0, 200.0)
    assert throughputs(Speed(1000.0, 100.0, behind_relay=True, pass_rps=800.0), 4) == (20.0, 20.0)
