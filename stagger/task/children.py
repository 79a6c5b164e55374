"""What the child processes of a task use. Imported by tasks that have had children, and only then."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from stagger.slurm.job_memory import family

#: Fields of /proc/PID/stat after the name: the CPU time of the process and of its children that have ended (proc(5)).
CPU_FIELDS = slice(11, 15)


def living_cpu_s() -> float:
    """CPU seconds of this process's descendants that still live."""
    ticks = sum(sum(map(int, _stat(pid)[CPU_FIELDS])) for pid in _descendants())
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib() -> int:
    """Peak resident memory of the descendants: of those that live in sum, or of the largest that has ended, in MiB."""
    living = sum(_peak_kib(pid) for pid in _descendants())
    return max(living, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024


def _descendants() -> Iterator[int]:
    return (pid for pid in family(os.getpid()) if pid != os.getpid())


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:  # It has ended.
        return []


def _peak_kib(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0
