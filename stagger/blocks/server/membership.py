"""A server's membership of its swarm: its record in the registry, its heartbeats, and what it sees of the others."""

from __future__ import annotations

import time
from dataclasses import replace
from random import Random

from stagger.blocks.host import Host, Speed
from stagger.blocks.placement.noise import is_noise
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.host_notes import told
from stagger.blocks.server.measuring import refined, remember, throughputs
from stagger.blocks.server.records import ServerRecord, View, rank_of, superseded
from stagger.blocks.server.registry import Registry, jittered
from stagger.blocks.server.tending import Tending
from stagger.blocks.swarm_place import END
from stagger.errors import StaggerError
from stagger.task import Superseded
from stagger.task.attempt_log import log

#: Seconds between two announcements of a server that loads: clients use each block once they see it.
PROGRESS_S = 2.0


class SwarmEnded(Exception):
    """The swarm has ended, as its users have."""


class Membership:
    """What server `server_id` and the others of its swarm know of one another. For use by one thread.

    `record` is the server's own, None until it has claimed blocks. `speed` is its host's for `workload`; what the host
    counts refines it. `heartbeat_s`: mean seconds between two heartbeats.
    """

    def __init__(
        self,
        registry: Registry,
        host: Host,
        server_id: str,
        heartbeat_s: float,
        random: Random,
        tending: Tending | None = None,
    ) -> None:
        self.registry = registry
        self.id = server_id
        self.record: ServerRecord | None = None
        self.view = View(0, {})
        self.speed = Speed(0.0, 0.0)
        self.workload = ""
        self._host = host
        self._heartbeat_s = heartbeat_s
        self._random = random
        self._tending = tending
        self._calm_since = time.monotonic()
        self._heartbeat_at = 0.0
        self._announced_at = 0.0
        self._strange_since: float | None = None  # When the registry was first seen without this server's claim.

    @property
    def mine(self) -> ServerRecord:
        assert self.record is not None
        return self.record

    def calm_s(self) -> float:
        """Seconds since a server has come or gone."""
        return time.monotonic() - self._calm_since

    def retire_earlier(self) -> None:
        """Mark earlier attempts of this server's rank as gone."""
        for name, member in self.registry.refresh().members.items():
            if member.record is not None and name != self.id and rank_of(name) == rank_of(self.id):
                self.registry.retire(member.record, f"its job restarted as {self.id}")

    def announce(self, record: ServerRecord) -> None:
        """Write the record, with what the host says about itself. A failed write only logs a warning, since the next
        heartbeat retries it: blocks that took long to load are kept.
        """
        if record.state != ServerState.OFFLINE:
            about, counters = told(self._host, "about"), told(self._host, "counters")
            record = self._refined(replace(record, about=about, counters=counters))
        self.record = record
        self._announced_at = time.monotonic()
        self._heartbeat_at = self._announced_at + jittered(self._heartbeat_s, self._random)
        try:
            self.record = self.registry.announce(record)
        except (OSError, StaggerError) as error:
            log(f"the registry cannot be written, the next heartbeat retries: {error}", "WARNING")

    def announce_soon(self, record: ServerRecord) -> None:
        """Change the record. It is written PROGRESS_S after the one before, or with a heartbeat that comes earlier."""
        self.record = record
        self._heartbeat_at = min(self._heartbeat_at, self._announced_at + PROGRESS_S)

    def beat(self) -> None:
        """Send a heartbeat, and look at the others, when it is time.

        Raises SwarmEnded, and Superseded when a later attempt of this server's rank has joined: Slurm, or whoever
        restarted the rank, took this one for dead.
        """
        if END in self.registry.others:
            raise SwarmEnded
        if later := superseded([self.id, *self.view.members, *self.view.gone]).get(self.id):
            raise Superseded(f"Its rank started again as {later}.")
        if self.record is not None and time.monotonic() >= self._heartbeat_at:
            self.announce(self.record)
            self.look()

    def look(self) -> None:
        """Read the registry. A failed read only logs a warning. Raises StaggerError when it is another one."""
        try:
            self.see(self.registry.refresh())
        except (OSError, StaggerError) as error:
            log(f"the registry cannot be read: {error}", "WARNING")
        else:
            self._check_place()
        if self._tending is not None:
            self._tending.look(self.view, self.registry.others)

    def see(self, view: View) -> None:
        """Store the view, and note the time if a server has come or gone."""
        if view.members.keys() != self.view.members.keys():
            self._calm_since = time.monotonic()
        self.view = view

    def _check_place(self) -> None:
        """Raise StaggerError when the registry has this server's record, but for a lease no claim as late as its own.

        The latest claim is never removed. Somebody has therefore moved or removed the folder, and writing the record
        has made a new one. Nobody looks for a server there, and nothing would ever end it.
        """
        known = self.record is None or self.registry.listed_claim >= self.record.claim
        if known or self.id not in self.view.members:
            self._strange_since = None
            return
        now = time.monotonic()
        self._strange_since = now if self._strange_since is None else self._strange_since
        if now - self._strange_since > self.registry.lease_s:
            raise StaggerError(
                f"{self.registry.folder} was moved or removed while this server ran: claim {self.mine.claim} is not"
                " there any more. What is there now was written since, and can be removed."
            )

    def _refined(self, record: ServerRecord) -> ServerRecord:
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
