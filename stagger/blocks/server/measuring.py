"""Measuring how fast a host is: once per machine, device and workload, one server at a time, and never for ever."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import orjson

from stagger.blocks.host import Speed
from stagger.errors import StaggerError

#: Seconds between two looks at a lock.
NAP_S = 0.1


def measured(
    workload: str, measure: Callable[[], Speed], timeout_s: float, pause: Callable[[float], None] = time.sleep
) -> Speed:
    """The host's speed: as another server of this machine measured it for the same workload, or measured now.

    Servers that start together would measure one another's load: they take turns, by a lock that the kernel lets go
    with its holder. `pause` waits, and may raise. Raises StaggerError for one that cannot be, or when the others take
    longer than `timeout_s`.
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
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "wb") as file:
            file.write(orjson.dumps({"workload": workload, "speed": vars(speed), "time": time.time()}))
        os.rename(temporary, path)
    return speed


def cache_folder() -> str:
    """A folder on this machine, of this user alone: others could have left there what is not true."""
    folder = os.path.join(tempfile.gettempdir(), f"stagger-blocks-{os.getuid()}")
    os.makedirs(folder, 0o700, exist_ok=True)
    info = os.lstat(folder)
    if info.st_uid != os.getuid() or info.st_mode & 0o022 or os.path.islink(folder):
        raise StaggerError(f"{folder} belongs to somebody else, or others may write there: remove it.")
    return folder


def devices() -> str:
    """What names the GPUs that this job may use; by the CPU's cores where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("ROCR_VISIBLE_DEVICES")
    return f"gpu {visible}" if visible else f"{len(os.sched_getaffinity(0))} cores"


def _read(path: str, workload: str) -> Speed | None:
    """What the cache says; nothing when it is damaged, or of another workload."""
    try:
        with open(path, "rb") as file:
            content = orjson.loads(file.read())
        return Speed(**content["speed"]) if content["workload"] == workload else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(path: str, timeout_s: float, pause: Callable[[float], None]) -> Iterator[None]:
    """Hold a lock of this machine. Raises StaggerError when another process holds it for longer than that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StaggerError(
                        f"another server of this machine has been measuring for {timeout_s:g} s"
                        " (blocks.measure_timeout)."
                    ) from None
                pause(NAP_S)
        yield
    finally:
        os.close(descriptor)
