"""A block server's life: measure, claim, load, announce, hold and check, move, drain, leave; `run` calls them in order.

One thread decides and uses the registry (membership.py, balance.py). Calls of the host take long and run in other
threads, so heartbeats and signals are handled whatever the host is doing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from signal import Signals
from typing import Any, TypeVar, cast

import numpy as np

from stagger.blocks.host import Host
from stagger.blocks.placement.petals import block_selection_delay, choose_best_blocks
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.background import Background
from stagger.blocks.server.balance import Balance
from stagger.blocks.server.lifetime import Lifetime, share_of_time
from stagger.blocks.server.load_order import load_order, runs
from stagger.blocks.server.measuring import devices, measured, throughputs
from stagger.blocks.server.membership import Membership, SwarmEnded
from stagger.blocks.server.records import Placed, ServerRecord, View
from stagger.blocks.server.registry import Registry, jittered
from stagger.blocks.server.slots import Queue
from stagger.blocks.server.tending import Tending
from stagger.errors import Interrupted, StaggerError, counted
from stagger.pipeline.task_context import StopFlag
from stagger.spec.block_settings import BlockSettings
from stagger.task.attempt_log import log

#: Seconds between two checks, during a wait, for a signal or the end of a call of the host.
NAP_S = 0.1

#: The reason that a server records when it leaves, by the signal that it received.
REASONS = {Signals.SIGTERM: "stopped by SIGTERM", Signals.SIGUSR2: "its job's time is up"}

#: Assumed seconds to load a block, until this server has loaded one.
SECONDS_PER_BLOCK = 3.0

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """A server's id, its job, and when that job's time is up, in seconds since the epoch.

    `has_users`: whether stages use its swarm.
    """

    server_id: str
    job: str = ""
    job_ends: float | None = None
    has_users: bool = False


class BlockServer:
    """One server of a swarm."""

    def __init__(
        self,
        settings: BlockSettings,
        host: Host,
        registry: Registry,
        identity: Identity,
        stop: StopFlag,
        seed: int | None = None,
        tending: Tending | None = None,
    ) -> None:
        self.settings = settings
        self.host = host
        self.registry = registry
        self.identity = identity
        self.stop = stop
        self.rng = np.random.default_rng(seed)
        self.random = Random(seed)  # noqa: S311 - jitter.
        self.membership = Membership(registry, host, identity.server_id, settings.heartbeat, self.random, tending)
        self.balance = Balance(settings, self.membership, self.rng)
        self.loaded: set[int] = set()
        self.load_seconds = 0.0
        self.lifetime = Lifetime(
            time.time(),
            identity.job_ends,
            settings.drain,
            has_users=identity.has_users,
            share=share_of_time(self.random),
        )
        self.serving = Background("serving", self._serve)
        self.told_to_end = threading.Event()

    @property
    def id(self) -> str:
        return self.identity.server_id

    @property
    def mine(self) -> ServerRecord:
        return self.membership.mine

    def run(self) -> str:
        """Run the server until its time is up, and return why it left.

        Raises Interrupted when a signal stopped it before that, or when it comes back in a new job, and the host's
        error when the host failed.
        """
        try:
            self.note_the_swarms_end()
            if self.lifetime.is_too_short:
                raise StaggerError(
                    f"The job's time leaves none to serve: draining takes {self.settings.drain:g} s"
                    " (executor.time, blocks.drain)."
                )
            num_blocks, throughput = self.measure()
            self.pause(block_selection_delay(self.rng, self.settings.mean_block_selection_delay))
            self.join(num_blocks, throughput)
            self.load()
            self.hold()
            reason = "blocks.serve_for has elapsed"
        except SwarmEnded:
            reason = "the stages that use the swarm have ended"
            self.leave(reason)
        except Interrupted as interrupted:
            self.stop.clear()
            reason = REASONS.get(interrupted.signal, f"stopped by {interrupted}")
            comes_back = interrupted.signal == Signals.SIGUSR2 and self.lifetime.comes_back
            self.stop.planned = comes_back and self.serving.started  # Else its time does not suffice to load a block.
            self.leave(f"{reason}; it comes back in a new one" if self.stop.planned else reason)
            near = self.lifetime.is_near_its_end(time.time())
            if interrupted.signal != Signals.SIGUSR2 or comes_back or not near:
                raise
            self.stop.clear()  # A signal during draining asks for nothing more: the server has left.
        except BaseException as error:
            self.leave(f"failed: {error}")
            raise
        else:
            self.leave(reason)
        return reason

    def note_the_swarms_end(self) -> None:
        """Find out when the swarm's time is over: `serve_for` counts from its first server's start."""
        if (serve_for := self.settings.serve_for) is not None:
            began = self.lifetime.began
            try:
                began = self.registry.began(began)
            except (OSError, StaggerError) as error:
                log(f"blocks.serve_for counts from now, as the registry cannot be used: {error}", "WARNING")
            self.lifetime = replace(self.lifetime, swarm_ends=began + serve_for)

    def measure(self) -> tuple[int, float]:
        """Number of blocks that this server hosts, and its throughput with them, in requests per second.

        Raises StaggerError when blocks.num_blocks exceeds the room, or measuring takes too long.
        """
        room = self.in_background("counting the blocks that fit", self.host.room)
        wanted = room if self.settings.num_blocks == "auto" else self.settings.num_blocks
        if not 1 <= wanted <= room:
            raise StaggerError(f"{counted(room, 'block', 'fits')} on this host, not {wanted} (blocks.num_blocks).")
        workload = getattr(
            self.host, "workload", f"{self.settings.host} {self.settings.host_options} {self.settings.model}"
        )
        workload = f"{devices(getattr(self.host, 'device', None))} {workload}"
        most_s = self.settings.measure_timeout
        speed = self.in_background("measuring", partial(measured, workload, self.host.measure, most_s), most_s)
        self.membership.workload, self.membership.speed = workload, speed
        num_blocks = min(wanted, self.settings.total)
        throughput, passes = throughputs(speed, num_blocks)
        log(
            f"{counted(num_blocks, 'block', 'fits')}, {throughput:.4g} requests/s each, {passes:.4g} passes/s ({speed})"
        )
        return num_blocks, throughput

    def join(self, num_blocks: int, throughput: float) -> None:
        """Claim the span with the lowest throughput, and announce it."""
        self.membership.retire_earlier()
        self.pause(0)  # The swarm may have ended while this server waited.

        def choose(view: View) -> dict[str, Placed]:
            self.membership.see(view)
            window = choose_best_blocks(num_blocks, view.spans(), self.settings.total)
            return {self.id: Placed(window.start, window.stop, throughput)}

        claim = self.registry.claim(choose, self.pause)
        assert claim is not None
        placed = claim.placements[self.id].placed
        log(f"claims blocks {placed.start} to {placed.end - 1} (claim {claim.number})")
        self.membership.announce(
            ServerRecord(
                server_id=self.id,
                host=os.uname().nodename,
                port=getattr(self.host, "port", None),
                state=ServerState.JOINING,
                start=placed.start,
                end=placed.end,
                serving=None,
                throughput=throughput,
                pass_throughput=throughputs(self.membership.speed, num_blocks)[1],
                claim=claim.number,
                job=self.identity.job,
                job_ends=self.identity.job_ends,
            )
        )

    def load(self) -> None:
        """Load the missing blocks, those adjacent to served ones first, and serve each once it is loaded."""
        backwards = self.await_slot()
        record = self.mine
        order = load_order(range(record.start, record.end), self.served(), backwards)
        if order and callable(plan := getattr(self.host, "plan", None)):
            plan(order)
        for block in order:
            began = time.monotonic()
            self.in_background(f"loading block {block}", partial(self.host.load, range(block, block + 1)))
            self.heed()  # A signal may have cut the load short, so the block does not count as loaded.
            self.load_seconds += time.monotonic() - began
            self.loaded.add(block)
            loaded = self.mine.blocks_loaded + 1
            self.membership.announce_soon(replace(self.mine, blocks_loaded=loaded, serving=self.served()))
            if not self.serving.started:
                self.serving.start()
        self.membership.announce(replace(self.mine, state=ServerState.ONLINE, serving=self.served()))
        log(f"serves blocks {record.start} to {record.end - 1}")

    def await_slot(self) -> bool:
        """Wait until this server may load (blocks.loading_slots); hosts that do not load from storage need not wait.

        Returns whether it begins at the end of its span.
        """
        if not getattr(self.host, "loads_from_storage", True):
            return False
        queue = Queue(self.id, self.settings.total, self.settings.loading_slots)
        self.membership.look()
        while wait_s := queue.wait_s(self.membership.view, time.monotonic()):
            self.pause(jittered(wait_s, self.random))
            self.membership.look()
        return queue.backwards

    def hold(self) -> None:
        """Serve, check the balance at random times, and move, until the time is up."""
        check_at = time.monotonic() + self.balance.delay()
        while not self.is_over():
            decided = self.membership.view.members.get(self.id)
            if decided is not None and decided.claim > self.mine.claim:
                self.move(decided.target, decided.claim)
            elif time.monotonic() >= check_at:
                self.balance.check(self.seconds_per_block(), self.pause)
                check_at = time.monotonic() + self.balance.delay()
            else:
                self.pause(NAP_S)

    def seconds_per_block(self) -> float:
        """Mean seconds that this server has needed to load a block."""
        loaded = self.mine.blocks_loaded
        return self.load_seconds / loaded if loaded else SECONDS_PER_BLOCK

    def move(self, target: Placed, claim: int) -> None:
        """Change to the span of `claim`: announce it, drop the blocks outside it, load the missing ones."""
        window = range(target.start, target.end)
        kept = self.loaded & set(window)
        log(f"moves to blocks {target.start} to {target.end - 1} (claim {claim}); {len(kept)} are loaded already")
        dropped = sorted(self.loaded - kept)
        self.loaded = kept
        self.membership.announce(
            replace(
                self.mine,
                state=ServerState.JOINING,
                start=target.start,
                end=target.end,
                serving=self.served(),
                claim=claim,
                moves=self.mine.moves + 1,
            )
        )
        for blocks in runs(dropped):
            self.in_background(
                f"dropping blocks {blocks.start} to {blocks.stop - 1}", partial(self.host.unload, blocks)
            )
        self.load()

    def leave(self, reason: str) -> None:
        """Announce the end first, so that others take over; then give requests in flight blocks.drain seconds."""
        log(f"leaves: {reason}")
        self.told_to_end.set()
        if self.membership.record is not None:
            gone = replace(self.mine, state=ServerState.OFFLINE, serving=None, reason=reason[:500])
            self.membership.announce(gone)
        if self.serving.started and not self.serving.join(self.settings.drain):
            log(f"requests in flight did not finish within {self.settings.drain:g} s (blocks.drain)", "WARNING")

    # ---- Time ----

    def is_over(self) -> bool:
        """Whether blocks.serve_for has elapsed. Raises Interrupted when this server leaves for its job's sake."""
        now = time.time()
        if self.lifetime.is_over(now):
            return True
        if now > self.lifetime.leaves:
            raise Interrupted(Signals.SIGUSR2)
        return False

    def is_told_to_stop(self) -> bool:
        """Whether a signal asks the server to stop.

        Slurm's warning before the time limit reaches all servers of an array at once. Those that come back have chosen
        different times to leave, and do not heed it before.
        """
        early = self.lifetime.comes_back and time.time() < self.lifetime.leaves
        if self.stop.signal == Signals.SIGUSR2 and early:
            self.stop.clear()
        return self.stop.signal is not None

    def heed(self) -> None:
        """Raise Interrupted when a signal asks the server to stop, or when its time to leave has come."""
        if self.is_told_to_stop():
            self.stop.check()
        if self.lifetime.comes_back and time.time() > self.lifetime.leaves and not self.told_to_end.is_set():
            raise Interrupted(Signals.SIGUSR2)

    def pause(self, seconds: float) -> None:
        """Wait, and send heartbeats.

        Raises Interrupted for a signal, StaggerError when serving has failed, and what `Membership.beat` raises.
        """
        end = time.monotonic() + seconds
        while True:
            self.heed()
            self.serving.raise_if_failed()
            self.membership.beat()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, NAP_S))

    # ---- The host ----

    def in_background(self, what: str, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run a call of the host in another thread, and send heartbeats meanwhile; return its result.

        Raises StaggerError when the call fails, or takes longer than `timeout_s`.
        """
        task = Background(what, work)
        task.start()
        began = time.monotonic()
        while not task.join(NAP_S):
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise StaggerError(f"{what} has taken more than {timeout_s:g} s.")
            self.pause(0)
        task.raise_if_failed()
        return cast("T", task.result)

    def _serve(self) -> None:
        self.host.serve(self.told_to_end)
        if not self.told_to_end.is_set():
            raise StaggerError("serve() returned before `stop` was set.")

    def served(self) -> tuple[int, int] | None:
        """The longest run of loaded blocks, end excluded, since a span has no gaps; None if none is loaded."""
        longest = max(runs(sorted(self.loaded)), key=len, default=None)
        return None if longest is None else (longest.start, longest.stop)

    def notes(self) -> dict[str, Any]:
        """The notes for the completion record: the server's id, moves and blocks loaded."""
        if self.membership.record is None:
            return {}
        return {"server": self.id, "moves": self.mine.moves, "blocks_loaded": self.mine.blocks_loaded}
