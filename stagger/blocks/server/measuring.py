"""Measure a host's speed: once per machine, device and workload, one server at a time, with a timeout."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

from stagger.blocks.host import Speed
from stagger.errors import StaggerError, counted
from stagger.storage.ownership import exposed, open_to_others

#: Seconds between two attempts to take a lock.
NAP_S = 0.1


def measured(
    workload: str, measure: Callable[[], Speed], timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> Speed:
    """The host's speed, from this machine's cache for `workload`, or measured now.

    Servers that measured together would slow one another down, so they take turns by a lock, which the kernel releases
    when its holder dies. `pause` waits for the given seconds, and may raise. Raises StaggerError when the speed is not
    positive and finite, or when others hold the lock for more than `timeout_s` seconds.
    """
    folder = cache_folder()
    path = os.path.join(folder, f"{hashlib.sha256(workload.encode()).hexdigest()[:24]}.json")
    if (known := _read(path, workload)) is not None:
        return known
    with locked(f"{path}.lock", timeout_s, pause):
        if (known := _read(path, workload)) is not None:
            return known
        speed = measure()
        if not 0 < speed.forward_rps < float("inf") or not 0 < speed.network_rps < float("inf"):
            raise StaggerError(f"the host measured {speed}: both must be more than 0 requests per second.")
        content = orjson.dumps({"workload": workload, "speed": vars(speed), "time": time.time()})
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.rename(temporary, path)
    return speed


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


def devices() -> str:
    """Identifies the GPUs that this job may use, or the number of CPU cores if it has none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES")
    return f"gpu {visible}" if visible else counted(len(os.sched_getaffinity(0)), "core")


def _read(path: str, workload: str) -> Speed | None:
    """The cached speed; None when there is none, the file is damaged, or it holds another workload."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = orjson.loads(file.read())
        known = Speed(**content["speed"])
        sound = 0 < known.forward_rps < float("inf") and 0 < known.network_rps < float("inf")
        return known if sound and content["workload"] == workload else None
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
