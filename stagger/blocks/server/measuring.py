"""Measure a host's speed: once per machine, kind of device and workload, one server at a time, with a timeout.

What a host measures while it serves refines the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson

from stagger.blocks.host import Speed
from stagger.blocks.placement.petals import RELAY_PENALTY, server_throughput
from stagger.errors import StaggerError, counted
from stagger.storage.ownership import exposed, open_to_others

#: Seconds between two attempts to take a lock.
NAP_S = 0.1

#: The file that the server locks that measures: one at a time on a machine, whatever it measures.
LOCK = "measuring.lock"

#: Fields of a speed that are rates.
RATES = ("forward_rps", "network_rps", "pass_rps")

#: Where the NVIDIA driver names its devices, a line `Model: NVIDIA A100-SXM4-40GB` for each.
NVIDIA = "/proc/driver/nvidia/gpus/*/information"


def measured(
    workload: str, measure: Callable[[], Speed], timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> Speed:
    """The host's speed, from this machine's cache for `workload`, or measured now.

    Servers that measured together would slow one another down, so they take turns by a lock, which the kernel releases
    when its holder dies. `pause` waits for the given seconds, and may raise. Raises StaggerError when the speed is not
    positive and finite, or when others hold the lock for more than `timeout_s` seconds.
    """
    if (known := _read(workload)) is not None:
        return known
    with locked(os.path.join(cache_folder(), LOCK), timeout_s, pause):
        if (known := _read(workload)) is not None:
            return known
        speed = measure()
        if not is_sound(speed):
            raise StaggerError(f"the host measured {speed}: each rate must be more than 0 requests per second.")
        remember(workload, speed)
    return speed


def remember(workload: str, speed: Speed) -> None:
    """Put a speed into this machine's cache."""
    content = orjson.dumps({"workload": workload, "speed": vars(speed), "time": time.time()})
    path = _path(workload)
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with open(descriptor, "wb") as file:
        file.write(content)
    os.rename(temporary, path)


def refined(speed: Speed, counters: dict[str, Any]) -> Speed:
    """The speed with the rates that a host has measured on requests that it served.

    >>> refined(Speed(100.0, 50.0), {"forward_rps": 80.0, "queue": 3}).forward_rps
    80.0
    """
    found = replace(speed, **{name: counters[name] for name in RATES if counters.get(name) is not None})
    return found if is_sound(found) else speed


def is_sound(speed: Speed) -> bool:
    """Whether all rates of a speed are positive, finite numbers."""
    rates = [speed.forward_rps, speed.network_rps, *([] if speed.pass_rps is None else [speed.pass_rps])]
    return all(isinstance(rate, (int, float)) and 0 < rate < float("inf") for rate in rates)


def throughputs(speed: Speed, num_blocks: int) -> tuple[float, float]:
    """The throughput of a server of `num_blocks` blocks, in requests per second: as placement counts it, and of passes.

    Passes run through the whole span: n blocks each, where Petals counts (n + 1) / 2. Placement counts passes if the
    host serves them.

    >>> throughputs(Speed(1000.0, 900.0), 9), throughputs(Speed(1000.0, 900.0, pass_rps=1800.0), 9)
    ((200.0, 111.11111111111111), (200.0, 200.0))
    """
    network = speed.network_rps * (RELAY_PENALTY if speed.behind_relay else 1)
    passes = min((speed.pass_rps or speed.forward_rps) / num_blocks, network)
    if speed.pass_rps is not None:
        return passes, passes
    rps, relay = speed.forward_rps, speed.behind_relay
    return server_throughput(rps, speed.network_rps, num_blocks, behind_relay=relay), passes


def cache_folder() -> str:
    """The user's folder on this machine. Nobody else may write to it, since they could plant wrong measurements.

    Raises StaggerError when others own it or may write to it, or could replace it.
    """
    folder = os.path.join(tempfile.gettempdir(), f"stagger-blocks-{os.geteuid()}")
    os.makedirs(folder, 0o700, exist_ok=True)
    info = os.lstat(folder)
    if info.st_uid != os.geteuid() or open_to_others(info) or not stat.S_ISDIR(info.st_mode):
        raise StaggerError(f"{folder} belongs to another user, or others may write there: remove it.")
    if reason := exposed(folder):
        raise StaggerError(f"{folder} is not safe: {reason}. Set TMPDIR to a folder of your own.")
    return folder


def devices(name: str | None = None) -> str:
    """The kind of device that this job may use, and how many: alike for jobs that should measure the same.

    `name` is the device's name, if the host knows it; else the driver's is taken. A job without GPUs has CPU cores.

    >>> import os; os.environ["CUDA_VISIBLE_DEVICES"] = "3"
    >>> devices("NVIDIA L4")
    '1 x NVIDIA L4'
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES")
    if not visible:
        return counted(len(os.sched_getaffinity(0)), "core")
    count = len(visible.split(","))
    names = {name} if name else driver_names()
    if "MIG-" in visible or len(names) > 1:  # Slices, or devices of several kinds: which is which is not known.
        return f"gpu {visible}"
    return f"{count} x {names.pop()}" if names else counted(count, "GPU")


def driver_names() -> set[str]:
    """The names of this machine's NVIDIA devices; empty where the driver shows none."""
    names = set()
    for path in glob.glob(NVIDIA):
        with contextlib.suppress(OSError), open(path) as file:
            names |= {line.partition(":")[2].strip() for line in file if line.startswith("Model:")}
    return names


def _path(workload: str) -> str:
    """The file of the machine's cache for a workload."""
    return os.path.join(cache_folder(), f"{hashlib.sha256(workload.encode()).hexdigest()[:24]}.json")


def _read(workload: str) -> Speed | None:
    """The cached speed; None when there is none, the file is damaged, or it holds another workload."""
    try:
        with open(os.open(_path(workload), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = orjson.loads(file.read())
        known = Speed(**content["speed"])
        return known if is_sound(known) and content["workload"] == workload else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(path: str, timeout_s: float, pause: Callable[[float], None]) -> Iterator[None]:
    """Hold a lock of this machine. Raises StaggerError when another process holds it longer than `timeout_s`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StaggerError(
                        f"another server on this machine has been measuring for {timeout_s:g} s"
                        " (blocks.measure_timeout)."
                    ) from None
                pause(NAP_S)
        yield
    finally:
        os.close(descriptor)
