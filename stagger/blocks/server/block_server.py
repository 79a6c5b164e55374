"""A block server's life: measure, claim, load, announce, hold and check, move, drain, leave; `run` calls them in order.

One thread decides and uses the registry. Calls of the host take long and run in other threads, so heartbeats and
signals are handled whatever the host is doing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from signal import Signals
from typing import Any, TypeVar, cast

import numpy as np

from stagger.blocks.host import Host, Speed
from stagger.blocks.placement.joint_moves import plan_delay
from stagger.blocks.placement.noise import even, is_noise
from stagger.blocks.placement.petals import (
    MEAN_BALANCE_CHECK_PERIOD,
    balance_check_delay,
    block_selection_delay,
    choose_best_blocks,
)
from stagger.blocks.placement.rules import Rule, Setting, Swarm, full, own_gain, planner
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.background import Background
from stagger.blocks.server.host_notes import told
from stagger.blocks.server.lifetime import Lifetime, share_of_time
from stagger.blocks.server.load_order import load_order, runs
from stagger.blocks.server.measuring import devices, measured, refined, remember, throughputs
from stagger.blocks.server.records import Placed, ServerRecord, View, rank_of, superseded
from stagger.blocks.server.registry import Registry, as_moves, jittered
from stagger.blocks.server.slots import Queue
from stagger.blocks.server.tending import Tending
from stagger.blocks.swarm_place import END
from stagger.errors import Interrupted, StaggerError, counted
from stagger.pipeline.task_context import StopFlag
from stagger.spec.block_settings import BlockSettings
from stagger.task import Superseded
from stagger.task.attempt_log import log

#: Seconds between two checks, during a wait, for a signal or the end of a call of the host.
NAP_S = 0.1

#: The reason that a server records when it leaves, by the signal that it received.
REASONS = {Signals.SIGTERM: "stopped by SIGTERM", Signals.SIGUSR2: "its job's time is up"}

#: Value of `rebalance` -> function of `balance_quality` that returns the rule. docs/block-placement.md compares them.
RULES: dict[str, Callable[[float], Rule | None]] = {
    "planner": lambda _: planner,
    "own_gain": lambda _: own_gain,
    "full": lambda quality: full(quality, guard=True),
    "none": lambda _: None,
}

#: Seconds between two announcements of a server that loads: clients use each block once they see it.
PROGRESS_S = 2.0

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


class SwarmEnded(Exception):
    """The swarm has ended, as its users have."""


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
        self.rule = RULES[settings.rebalance](settings.balance_quality)
        self.host = host
        self.registry = registry
        self.identity = identity
        self.stop = stop
        self.tending = tending
        self.speed = Speed(0.0, 0.0)
        self.workload = ""
        self.rng = np.random.default_rng(seed)
        self.random = Random(seed)  # noqa: S311 - jitter.
        self.record: ServerRecord | None = None
        self.loaded: set[int] = set()
        self.view = View(0, {})
        self.calm_since = time.monotonic()
        self.heartbeat_at = 0.0
        self.announced_at = 0.0
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
        self.workload = f"{devices(getattr(self.host, 'device', None))} {workload}"
        self.speed = self.in_background("measuring", self._measured, self.settings.measure_timeout)
        num_blocks = min(wanted, self.settings.total)
        throughput, passes = throughputs(self.speed, num_blocks)
        log(
            f"{counted(num_blocks, 'block', 'fits')}, {throughput:.4g} requests/s each, {passes:.4g} passes/s"
            f" ({self.speed})"
        )
        return num_blocks, throughput

    def _measured(self) -> Speed:
        return measured(self.workload, self.host.measure, self.settings.measure_timeout)

    def join(self, num_blocks: int, throughput: float) -> None:
        """Claim the span with the lowest throughput, and announce it."""
        for name, member in self.registry.refresh().members.items():
            if member.record is not None and name != self.id and rank_of(name) == rank_of(self.id):
                self.registry.retire(member.record, f"its job restarted as {self.id}")
        self.pause(0)  # The swarm may have ended while this server waited.

        def choose(view: View) -> dict[str, Placed]:
            self.see(view)
            window = choose_best_blocks(num_blocks, view.spans(), self.settings.total)
            return {self.id: Placed(window.start, window.stop, throughput)}

        claim = self.registry.claim(choose, self.pause)
        assert claim is not None
        placed = claim.placements[self.id].placed
        log(f"claims blocks {placed.start} to {placed.end - 1} (claim {claim.number})")
        self.announce(
            ServerRecord(
                server_id=self.id,
                host=os.uname().nodename,
                port=getattr(self.host, "port", None),
                state=ServerState.JOINING,
                start=placed.start,
                end=placed.end,
                serving=None,
                throughput=throughput,
                pass_throughput=throughputs(self.speed, num_blocks)[1],
                claim=claim.number,
                job=self.identity.job,
                job_ends=self.identity.job_ends,
            )
        )

    def load(self) -> None:
        """Load the missing blocks, those adjacent to served ones first, and serve each once it is loaded."""
        self.await_slot()
        record = self.mine
        order = load_order(range(record.start, record.end), self.served())
        if order and callable(plan := getattr(self.host, "plan", None)):
            plan(order)
        for block in order:
            began = time.monotonic()
            self.in_background(f"loading block {block}", partial(self.host.load, range(block, block + 1)))
            self.heed()  # A signal may have cut the load short, so the block does not count as loaded.
            self.load_seconds += time.monotonic() - began
            self.loaded.add(block)
            self.record = replace(self.mine, blocks_loaded=self.mine.blocks_loaded + 1, serving=self.served())
            self.heartbeat_at = min(self.heartbeat_at, self.announced_at + PROGRESS_S)
            if not self.serving.started:
                self.serving.start()
        self.announce(replace(self.mine, state=ServerState.ONLINE, serving=self.served()))
        log(f"serves blocks {record.start} to {record.end - 1}")

    def await_slot(self) -> None:
        """Wait until this server may load (blocks.loading_slots); hosts that do not load from storage need not wait."""
        if not getattr(self.host, "loads_from_storage", True):
            return
        queue = Queue(self.id, self.settings.total, self.settings.loading_slots)
        self.look()
        while wait_s := queue.wait_s(self.view, time.monotonic()):
            self.pause(jittered(wait_s, self.random))
            self.look()

    def hold(self) -> None:
        """Serve, check the balance at random times, and move, until the time is up."""
        check_at = time.monotonic() + self.check_delay()
        while not self.is_over():
            decided = self.view.members.get(self.id)
            if decided is not None and decided.claim > self.mine.claim:
                self.move(decided.target, decided.claim)
            elif time.monotonic() >= check_at:
                self.check()
                check_at = time.monotonic() + self.check_delay()
            else:
                self.pause(NAP_S)

    def check_delay(self) -> float:
        """Seconds until the next check: random, so that servers do not check in step."""
        mean = self.settings.mean_balance_check_period
        if mean == "auto" and self.settings.rebalance == "planner":
            return plan_delay(len(self.view.members), self.rng)
        return balance_check_delay(self.rng, MEAN_BALANCE_CHECK_PERIOD if mean == "auto" else mean)

    def check(self) -> None:
        """Decide which servers should move, this one or others, and claim their spans; remove old files."""
        try:
            claim = self.registry.claim(lambda view: as_moves(self.wanted_moves(view), view), self.pause)
            if claim is not None:
                log(f"claim {claim.number} moves {', '.join(claim.moves)}")
            self.see(self.registry.refresh())
            self.registry.sweep()
        except (OSError, StaggerError) as error:  # Serving goes on, and the next check retries.
            log(f"the balance cannot be checked: {error}", "WARNING")

    def wanted_moves(self, view: View) -> Mapping[str, range]:
        """Server id -> window of each server that should move, by the rule. Empty while this server is not listed."""
        self.see(view)
        if self.id not in view.members:  # And no later attempt is there, for which it would leave.
            self.announce(self.mine)  # Others removed its record while it could not reach the registry.
            return {}
        if self.rule is None:
            return {}
        spans, kept = even(view.spans()), even(view.kept())
        swarm = Swarm(spans, kept, time.monotonic() - self.calm_since)
        setting = Setting(self.settings.total, self.seconds_per_block(), delta=True, rng=self.rng)
        return self.rule(self.id, swarm, setting)

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
        self.record = replace(
            self.mine,
            state=ServerState.JOINING,
            start=target.start,
            end=target.end,
            claim=claim,
            moves=self.mine.moves + 1,
        )
        self.announce(replace(self.mine, serving=self.served()))
        for blocks in runs(dropped):
            self.in_background(
                f"dropping blocks {blocks.start} to {blocks.stop - 1}", partial(self.host.unload, blocks)
            )
        self.load()

    def leave(self, reason: str) -> None:
        """Announce the end first, so that others take over; then give requests in flight blocks.drain seconds."""
        log(f"leaves: {reason}")
        self.told_to_end.set()
        if self.record is not None:
            self.announce(replace(self.mine, state=ServerState.OFFLINE, serving=None, reason=reason[:500]))
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

        Raises Interrupted for a signal, SwarmEnded, StaggerError when serving has failed, and Superseded when a later
        attempt of this server's rank has joined: Slurm, or whoever restarted the rank, took this one for dead.
        """
        end = time.monotonic() + seconds
        while True:
            self.heed()
            self.serving.raise_if_failed()
            if END in self.registry.others:
                raise SwarmEnded
            if later := superseded([self.id, *self.view.members, *self.view.gone]).get(self.id):
                raise Superseded(f"Its rank started again as {later}.")
            if self.record is not None and time.monotonic() >= self.heartbeat_at:
                self.announce(self.mine)
                self.look()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, NAP_S))

    def announce(self, record: ServerRecord) -> None:
        """Write the record, with what the host says about itself. A failed write only logs a warning, since the next
        heartbeat retries it: blocks that took long to load are kept.
        """
        if record.state != ServerState.OFFLINE:
            record = self.refine(replace(record, about=told(self.host, "about"), counters=told(self.host, "counters")))
        self.record = record
        self.announced_at = time.monotonic()
        self.heartbeat_at = self.announced_at + jittered(self.settings.heartbeat, self.random)
        try:
            self.record = self.registry.announce(record)
        except (OSError, StaggerError) as error:
            log(f"the registry cannot be written, the next heartbeat retries: {error}", "WARNING")

    def refine(self, record: ServerRecord) -> ServerRecord:
        """The record with the throughput that the host's counters show, if that differs by more than noise."""
        speed = refined(self.speed, record.counters)
        throughput, passes = throughputs(speed, record.end - record.start)
        if speed == self.speed or is_noise(throughput, record.throughput):
            return record
        self.speed = speed
        log(f"{throughput:.4g} requests/s each, {passes:.4g} passes/s, measured on requests that it served ({speed})")
        try:
            remember(self.workload, speed)
        except OSError as error:
            log(f"the machine's measurement cannot be replaced: {error}", "WARNING")
        return replace(record, throughput=throughput, pass_throughput=passes)

    def look(self) -> None:
        """Read the registry. A failed read only logs a warning."""
        try:
            self.see(self.registry.refresh())
        except (OSError, StaggerError) as error:
            log(f"the registry cannot be read: {error}", "WARNING")
        if self.tending is not None:
            self.tending.look(self.view, self.registry.others)

    def see(self, view: View) -> None:
        """Store the view, and note the time if a server has come or gone."""
        if view.members.keys() != self.view.members.keys():
            self.calm_since = time.monotonic()
        self.view = view

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

    @property
    def mine(self) -> ServerRecord:
        assert self.record is not None
        return self.record

    def served(self) -> tuple[int, int] | None:
        """The longest run of loaded blocks, end excluded, since a span has no gaps; None if none is loaded."""
        longest = max(runs(sorted(self.loaded)), key=len, default=None)
        return None if longest is None else (longest.start, longest.stop)

    def notes(self) -> dict[str, Any]:
        """The notes for the completion record: the server's id, moves and blocks loaded."""
        if self.record is None:
            return {}
        return {"server": self.id, "moves": self.mine.moves, "blocks_loaded": self.mine.blocks_loaded}
