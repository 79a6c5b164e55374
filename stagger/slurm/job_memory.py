"""The memory of a job on its node: its limit, what processes use of it, and how often the kernel killed for it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

MIB = 2**20

#: The variable by which a crew gives a worker its share of the job's memory, in MiB.
SHARE_VARIABLE = "STAGGER_SHARE_MIB"


def limit_mib(environment: Mapping[str, str], *, requested: bool) -> int:
    """The memory of this job on this node, in MiB: the least of Slurm's grant, its cgroups' limits and the node's.

    `requested` is whether the job requested memory: a partition's default counts only where a cgroup enforces it.
    """
    limits = [_node_mib(), *_cgroup_limits()]
    if requested and (granted := granted_mib(environment)):
        limits.append(granted)
    return min(limits)


def granted_mib(environment: Mapping[str, str]) -> int:
    """The memory per node that Slurm granted, in MiB; 0 if unknown, or if it is all of the node's.

    >>> granted_mib({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "8"}), granted_mib({"SLURM_MEM_PER_NODE": "64"})
    (800, 64)
    """
    if per_node := environment.get("SLURM_MEM_PER_NODE"):
        return int(per_node)
    return int(environment.get("SLURM_MEM_PER_CPU") or 0) * int(environment.get("SLURM_CPUS_ON_NODE") or 1)


def free_bytes(environment: Mapping[str, str]) -> int:
    """Memory that this process may still take, in bytes: what its job's limit, or its share of it in a crew, leaves
    beyond its own use and that of its children, or what the node has available, if that is less.
    """
    limit = limit_mib(environment, requested=True) * MIB
    if share := environment.get(SHARE_VARIABLE):
        limit = min(limit, int(share) * MIB)
    used = used_mib(os.getpid(), above_mib=0) * MIB
    return max(0, min([limit - used, *_available()]))


def _available() -> Iterator[int]:
    """Bytes that the node can give without swapping: proc(5), MemAvailable."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _node_mib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def _cgroup_limits() -> Iterator[int]:
    """The limits of this process's cgroups, in MiB: of version 2, or of version 1's memory controller."""
    for folder in _cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(os.path.join(folder, name)).strip()
            if text.isdecimal():
                yield max(1, int(text) // MIB)


def _cgroups() -> Iterator[str]:
    """The folder of this process's memory cgroup, and those above it: a job's limit is set at several levels."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = "/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup"
        parts = path.strip("/").split("/")
        for length in range(len(parts), 0, -1):
            yield os.path.join(root, *parts[:length])


def killed_for_memory() -> int:
    """How often the kernel has killed a process of this job because its memory was exhausted; 0 if that is unknown."""
    for folder in _cgroups():
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(os.path.join(folder, name)).splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def used_mib(pid: int, above_mib: float) -> int:
    """Memory of a process and its descendants, in MiB.

    Pages that several of them share count in each at first. Where that exceeds `above_mib`, they are counted exactly,
    which takes the kernel milliseconds per GiB.
    """
    members = list(family(pid))
    used = sum(_resident(member) for member in members) // MIB
    if used <= above_mib or len(members) == 1:
        return used
    return sum(_proportional(member) for member in members) // MIB


def family(pid: int) -> Iterator[int]:
    """A process and its descendants. Where the kernel lists no children, the process alone."""
    yield pid
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # It has ended.
        return
    for thread in threads:
        for child in _read(f"/proc/{pid}/task/{thread}/children").split():
            yield from family(int(child))


def _resident(pid: int) -> int:
    words = _read(f"/proc/{pid}/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if words else 0


def _proportional(pid: int) -> int:
    """Resident bytes of a process, in which each page counts by its share (proc(5), smaps_rollup)."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return _resident(pid)


def _read(path: str) -> str:
    """The text of a file of the kernel; empty if there is none."""
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
