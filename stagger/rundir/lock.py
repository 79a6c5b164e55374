"""The process that holds a run's lock."""

from __future__ import annotations

import getpass
import os
import socket
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Holder:
    """The process that is launching the run, or running it locally.

    `process_started` is in clock ticks since boot, `time` in seconds since the epoch.
    """

    host: str
    pid: int
    process_started: int
    user: str
    time: float

    @classmethod
    def this_process(cls) -> Holder:
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()), user_name(), time.time())

    def is_this_process(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    def is_dead(self) -> bool:
        """Whether the process is known to have ended. Always false for a process on another machine."""
        return self.host == socket.gethostname() and process_start(self.pid) != self.process_started

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        return str(os.geteuid())


def process_start(pid: int) -> int:
    """Start time of a local process, in clock ticks since boot; 0 if there is none. Exposes a reused pid."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
