"""A run's lock: the file `lock`, which names the process that is launching the run, or running it locally."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import orjson

from stagger.errors import StaggerError
from stagger.rundir.launch_records import from_json
from stagger.rundir.stage_folder import decode, encode
from stagger.slurm.own_job import has_ended_since, own_restarts
from stagger.storage.ownership import user_name
from stagger.storage.storage import Storage, is_local
from stagger.terminal import logger

#: Seconds between two looks at a lock that another process holds, or is taking over.
NAP_S = 0.5

#: Seconds to wait for another process that is taking over a lock; it needs four requests.
TAKEOVER_S = 30.0

#: Appended to a lock that is created a second time, which must fail.
AGAIN = b"\n"

#: Times in a row that a file may be both there, when it is to be created, and gone, when it is to be read.
MAX_VANISHED = 50


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    `process_started` is in clock ticks since boot, `time` in seconds since the epoch; `boot` identifies the host's
    boot; `command` is the SHA-256 of the command line, which itself may hold secrets; `job` is the Slurm job in which
    the process runs, as `12_3` or `12`, and empty outside of jobs; `restarts` is how often that had been requeued.
    """

    host: str
    pid: int
    process_started: int
    user: str
    time: float
    boot: str = ""
    command: str = ""
    job: str = ""
    restarts: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        pid = os.getpid()
        return cls(
            host=socket.gethostname(),
            pid=pid,
            process_started=process_start(pid),
            user=user_name(os.geteuid()),
            time=time.time(),
            boot=boot_id(),
            command=command_digest(pid),
            job=own_job(),
            restarts=own_restarts(),
        )

    def is_this_process(self) -> bool:
        return (self.host, self.pid) == (socket.gethostname(), os.getpid())

    def is_here(self) -> bool:
        """Whether the process belongs to this machine."""
        return self.host == socket.gethostname()

    def is_dead(self) -> bool:
        """Whether the process is known to have ended. For one on another machine, that is known only of its job."""
        if not self.is_here():
            mine = self.user == user_name(os.geteuid())  # Slurm may hide the jobs of others.
            return bool(self.job) and mine and has_ended_since(self.job, self.restarts)
        if self.boot and self.boot != boot_id():
            return True
        started = process_start(self.pid)
        return started != self.process_started if started else not can_be_hidden(self.pid)

    def doubt(self, owner: int) -> str | None:
        """Why it is not proven that process `pid` holds the lock now, as a clause; None when it is.

        `owner` is the user id that the process must have. The clause completes "process 12 ...".
        """
        if self.pid <= 0 or not self.is_here() or (self.boot and self.boot != boot_id()):
            return "is not on this machine"
        if process_start(self.pid) != self.process_started:
            return "started at another time than the lock says"
        if not self.command or command_digest(self.pid) != self.command:
            return "does not have the command line that took the lock"
        if (user := process_owner(self.pid)) != owner:
            return "has ended" if user is None else f"belongs to {user_name(user)}, not to {user_name(owner)}"
        return None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


class InUse(StaggerError):
    """Another process holds the lock of the run."""


class Lock:
    """The lock of the run in `run_dir`.

    The lock of a dead process is removed under a guard, a second lock beside it: only one process at a time may remove
    a lock, since a second one could remove the lock that the first has taken since. A process that dies within a
    takeover leaves its guard, which is then taken over in the same way.
    """

    def __init__(self, storage: Storage, run_dir: str, path: str) -> None:
        self.path = path
        self._storage = storage
        self._run_dir = run_dir

    @contextlib.contextmanager
    def held(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock, to launch the run or run it locally.

        Raises InUse, naming the holder, when another process still holds it after `wait_s` seconds.
        """
        mine = encode(asdict(Holder.this_process()))
        self._take(0, mine, time.monotonic() + wait_s)
        try:
            self._check_exclusive(mine)
            yield
        finally:
            if self._read(self.path) in (mine, mine + AGAIN):  # Somebody may have removed it by hand, and launched.
                self._storage.remove(self.path)

    def _check_exclusive(self, mine: bytes) -> None:
        """Raise StaggerError when the store replaces the lock, which exists, by a request to create it."""
        if not is_local(self.path) and self._storage.create(self.path, mine + AGAIN):
            raise StaggerError(
                f"{self.path}: the store ignores conditional writes (If-None-Match), so nothing would keep two launches"
                " of the run, or two attempts of a rank, apart. Put run_dir on a shared file system or on another store"
                " (docs/storage.md); input and output may stay here."
            )

    def holder(self) -> Holder | None:
        """The process that holds the lock; None if it is free, or if a crash has left only a part of the file.

        Raises StaggerError when the file is no lock at all.
        """
        data = self._read(self.path)
        return None if data is None else decode_holder(data, self.path)

    def owner(self) -> int:
        """The id of the user whose process took the lock: the file's owner. A store has no owners: this user."""
        return os.lstat(self.path).st_uid if is_local(self.path) else os.geteuid()

    def _place(self, level: int) -> str:
        """The path of the lock (level 0), of its guard (1), of that guard's guard (2), and so on."""
        return self.path if level == 0 else f"{self.path}.takeover{level if level > 1 else ''}"

    def _take(self, level: int, mine: bytes, deadline: float) -> None:
        """Create the lock or guard, once its holder has released it or is dead."""
        path = self._place(level)
        vanished = 0
        while not self._storage.create(path, mine):
            data = self._read(path)
            if data is None:  # Released between the two calls.
                vanished += 1
                if vanished > MAX_VANISHED:
                    raise StaggerError(f"{path} can be neither created nor read; remove it if nothing runs.")
            elif is_left(data, path):
                self._remove_left(level, data, mine)
            elif time.monotonic() < deadline:
                time.sleep(NAP_S)
            else:
                raise self._in_use(data, path)

    def _remove_left(self, level: int, data: bytes, mine: bytes) -> None:
        """Remove the lock or guard `data` of a dead process, unless somebody else has by now."""
        self._take(level + 1, mine, time.monotonic() + TAKEOVER_S)
        try:
            if self._read(self._place(level)) == data:
                self._storage.remove(self._place(level))
        finally:
            self._storage.remove(self._place(level + 1))

    def _in_use(self, data: bytes, path: str) -> InUse:
        holder = decode_holder(data, path)
        if path != self.path:
            text = f"{self.path} is being taken over by {holder}. Try again"
        else:
            text = (
                f"{self._run_dir} is in use by {holder}. Wait for it, or stop it with: stagger cancel {self._run_dir}"
            )
        here = holder is not None and holder.is_here()
        return InUse(text + ("" if here else f" (if it has ended there: remove {path})"))

    def _read(self, path: str) -> bytes | None:
        try:
            return self._storage.read(path)
        except FileNotFoundError:
            return None


def is_left(data: bytes, path: str) -> bool:
    """Whether the holder of a lock or guard is known to be dead. A part of a lock is what a crash left of it."""
    holder = decode_holder(data, path)
    if holder is None:
        logger.warning(f"{path} is damaged, as by a crash of its machine; it is replaced")
    return holder is None or holder.is_dead()


def decode_holder(data: bytes, path: str) -> Holder | None:
    """The holder in a lock file; None when only a part of it is left. Raises StaggerError for any other content."""
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return from_json(Holder, decode(data, path), path)


def own_job() -> str:
    """The Slurm job of this process, as `12_3` or `12`; empty outside of jobs."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "")


def boot_id() -> str:
    """Identifies this boot of the machine; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """Start time of a local process, in clock ticks since boot; 0 if there is none. Exposes a reused pid.

    A zombie has ended: it counts as none.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *numbers = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0
    return int(numbers[18]) if state not in ("Z", "X") else 0


def can_be_hidden(pid: int) -> bool:
    """Whether a process that /proc does not show may run all the same, under another user (proc(5), hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False


def command_digest(pid: int) -> str:
    """SHA-256 of the command line of a local process; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def process_owner(pid: int) -> int | None:
    """The user id of a local process; None if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
