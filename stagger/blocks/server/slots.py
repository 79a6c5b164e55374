"""A server's wait for a loading slot: the claims in the registry are the queue (placement/loading_slots.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stagger.blocks.placement.loading_slots import PATIENCE_S, Loader, ahead_of, look_delay, turns_ahead
from stagger.blocks.placement.petals import ServerState
from stagger.blocks.server.records import Member, View
from stagger.errors import counted
from stagger.task.attempt_log import log


@dataclass
class Queue:
    """The place of server `server_id` in the queue, at one load."""

    server_id: str
    total_blocks: int
    slots: Literal["auto"] | int
    _ahead: list[str] = field(default_factory=list)
    _since: float | None = None

    def wait_s(self, view: View, now: float) -> float:
        """Seconds until the server should look again; 0 once it may load. `now`: seconds of a monotonic clock.

        It may load in its turn, and after PATIENCE_S seconds in which nothing has changed ahead of it.
        """
        loaders = [_loader(name, member) for name, member in view.members.items() if member.state < ServerState.ONLINE]
        ahead = ahead_of(self.server_id, loaders)
        served = sum(span.length for span in view.kept())
        turns = turns_ahead(ahead, self.slots, total_blocks=self.total_blocks, served=served)
        if not turns:
            return 0.0
        names = [loader.server_id for loader in ahead]
        if self._since is None:
            log(f"waits for a loading slot: {counted(len(ahead), 'server')} with earlier claims load")
        if self._since is None or names != self._ahead:
            self._ahead, self._since = names, now
        if now - self._since > PATIENCE_S:
            log(f"loads beside {names[0]} and others, which have not loaded for {PATIENCE_S:g} s", "WARNING")
            return 0.0
        return look_delay(turns)


def _loader(name: str, member: Member) -> Loader:
    kept = member.keeps
    return Loader(member.claim, name, member.target.end - member.target.start - (kept[1] - kept[0] if kept else 0))
