"""The process of a task: the node it runs on, and the CPU time, memory and GPUs that it uses with its children."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagger.task.gpus import GpuSampler


class Usage:
    """What the process uses from now on. `gpus` samples its GPUs, if it has any."""

    def __init__(self) -> None:
        self.started = time.time()
        self.gpus: GpuSampler | None = None
        self._cpu_s = cpu_seconds()
        self._children_cpu_s = children_cpu_s()

    def fields(self) -> dict[str, Any]:
        """The fields of a record: times in seconds since the epoch, CPU time in seconds, memory in MiB."""
        return {
            "started": self.started,
            "ended": time.time(),
            "cpu_s": round(cpu_seconds() - self._cpu_s, 6),
            "peak_rss_mb": peak_rss_mb() + self._children_mib(),
            **({"gpus": self.gpus.use} if self.gpus is not None and self.gpus.use else {}),
        }

    def _children_mib(self) -> int:
        """Peak memory of the processes that were started since, in MiB; 0 without any."""
        if not has_children() and children_cpu_s() == self._children_cpu_s:
            return 0
        from stagger.task.children import peak_mib

        return peak_mib()


def gpus_watched() -> AbstractContextManager[GpuSampler | None]:
    """A context in which the GPUs are sampled that the job may use, if any."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return nullcontext()
    from stagger.task.gpus import GpuSampler

    return GpuSampler()


def node_name() -> str:
    """The name of the machine: inside a job, Slurm's name of the node, which may be another than its host name."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def cpu_seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of those that live."""
    used = time.process_time() + children_cpu_s()
    if not has_children():
        return used
    from stagger.task.children import living_cpu_s

    return used + living_cpu_s()


def children_cpu_s() -> float:
    """CPU seconds of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def has_children() -> bool:
    """Whether the process has children. Takes one system call, and no file."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def peak_rss_mb() -> int:
    """Peak resident memory of the process, in MiB. getrusage would include the parent's before exec."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0
