"""Looks after the swarm: lost servers are replaced, and the swarm ends with its users. Any server does it, in turn.

A server starts `python -m stagger.launch.tend` beside itself when it sees that another one is gone, and from time to
time. The n-th time is claimed by the file `tend.<n>.json`, which is created exclusively, so one server does it and not
all. What is done is done under the run's lock: a server that is killed meanwhile loses nothing and doubles nothing.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any

import orjson

from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import View, superseded
from stagger.errors import StaggerError
from stagger.storage.storage import Storage, join
from stagger.task.attempt_log import log

#: Most seconds until a server that has seen another one gone looks after it: U(0, SOON_S), as others have seen it, too.
SOON_S = 4.0

#: Seconds until the next try when the last one failed, or could not do all, such as while a lost server's job ends:
#: U(0.5, 1.5) times this, and twice as long after each try that changed nothing, up to MOST_AGAIN_S.
AGAIN_S, MOST_AGAIN_S = 15.0, 240.0

#: Mean seconds between two times without an occasion: for what nobody could see, such as the end of a user.
PERIOD_S = 300.0

#: A server whose job still runs is cancelled when it was silent for this many leases: it hangs, or is frozen.
SILENT_LEASES = 3.0

#: The exit status of `stagger.launch.tend` for what may succeed later, and for what never will from a node.
LATER, NEVER = 75, 77

NAME = re.compile(r"tend\.(\d+)\.json")


@dataclass(frozen=True)
class Order:
    """What `stagger.launch.tend` reads from its standard input.

    `gone`: servers that are gone. `silent`: those whose leases have expired for so long that their jobs, if they run,
    are to be cancelled -> the seconds since they were last heard.
    """

    run_dir: str
    stage: str
    storage_options: dict[str, dict[str, Any]]
    by: str
    gone: tuple[str, ...] = ()
    silent: dict[str, float] = field(default_factory=dict)


class Tending:
    """One server's part in looking after the swarm. For use by one thread. `clock` is monotonic, in seconds.

    Args:
        storage: that of the run.
        folder: the registry's.
        order: what the process reads, without the servers that are gone.
        servers: number of servers wanted.
        lease_s: seconds without a heartbeat after which a server is gone.
        has_users: whether stages use the swarm.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        order: Order,
        servers: int,
        lease_s: float,
        *,
        has_users: bool,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[Order], subprocess.Popen[bytes]] | None = None,
        random: Random | None = None,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._order = order
        self._servers = servers
        self._lease_s = lease_s
        self._has_users = has_users
        self._clock = clock
        self._start = start or started
        self._random = random or Random()  # noqa: S311 - jitter.
        self._latest = 0
        self._gone: dict[str, float] = {}  # When a server was first seen gone.
        self._handled: set[str] = set()  # Those for which somebody has looked after the swarm since.
        self._due: float | None = None
        self._next = clock() + self._period()
        self._process: subprocess.Popen[bytes] | None = None
        self._never = False
        self._again_s = AGAIN_S

    def look(self, view: View, others: Iterable[str]) -> None:
        """Start looking after the swarm if it is time. Call it after each look into the registry.

        `others` are the names of the registry's files besides servers and claims.
        """
        self._poll()
        now = self._clock()
        numbers = [int(found[1]) for name in others if (found := NAME.fullmatch(name))]
        if numbers and max(numbers) > self._latest:  # Somebody else does it, for all that is gone by now.
            self._latest = max(numbers)
            self._handled |= self._gone.keys()
            self._due, self._next = None, now + self._period()
        hidden = superseded([*view.members, *view.gone])
        self._gone = {name: self._gone.get(name, now) for name in view.gone if name not in hidden}
        if self._gone.keys() - self._handled and self._due is None:
            self._due, self._again_s = now + self._random.uniform(0, SOON_S), AGAIN_S
        idle = len(view.members) >= self._servers and not self._has_users
        is_time = (self._due is not None and now >= self._due) or (now >= self._next and not idle)
        if is_time and self._process is None and not self._never:
            self._claim(view, now)

    def _silent(self, view: View, now: float) -> dict[str, float]:
        """The servers that have been silent for SILENT_LEASES without a word -> at least how many seconds."""
        heard = {name: now - since + self._lease_s for name, since in self._gone.items()}
        old = {name: seconds for name, seconds in heard.items() if seconds > SILENT_LEASES * self._lease_s}
        return {name: seconds for name, seconds in old.items() if view.gone[name].state != ServerState.OFFLINE}

    def _claim(self, view: View, now: float) -> None:
        """Claim the next number and start the process; if another server has it already, that one does it."""
        number = self._latest + 1
        mine = orjson.dumps({"by": self._order.by, "time": time.time()})
        self._due, self._next = None, now + self._period()
        try:
            created = self._storage.create(join(self._folder, f"tend.{number}.json"), mine)
        except (OSError, StaggerError) as error:
            log(f"lost servers are not looked for now: {error}", "WARNING")
            return
        self._latest = number
        self._handled |= self._gone.keys()
        if created:
            with contextlib.suppress(OSError, StaggerError):
                self._storage.remove(join(self._folder, f"tend.{number - 1}.json"))
            self._process = self._start(
                replace(self._order, gone=tuple(sorted(self._gone)), silent=self._silent(view, now))
            )

    def _poll(self) -> None:
        """Log what the process did, once it has ended; try again soon if it could not do all."""
        if self._process is None or self._process.poll() is None:
            return
        assert self._process.stdout is not None
        said = self._process.stdout.read().decode(errors="replace").splitlines()
        status, self._process = self._process.returncode, None
        for line in said[-20:]:
            log(line, "WARNING" if status else "INFO")
        if status == NEVER:
            self._never = True
        elif status:
            self._due = self._clock() + self._again_s * self._random.uniform(0.5, 1.5)
            self._again_s = min(MOST_AGAIN_S, 2 * self._again_s)

    def _period(self) -> float:
        return PERIOD_S * self._random.uniform(0.5, 1.5)


def started(order: Order) -> subprocess.Popen[bytes]:
    """Start `stagger.launch.tend`, in a session of its own: it goes on when this server is stopped."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "stagger.launch.tend"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(orjson.dumps(asdict(order)))
    return process
