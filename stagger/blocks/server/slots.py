"""A server's wait for a loading slot: the claims in the registry are the queue (placement/loading_slots.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagger.blocks.placement.loading_slots import (
    PATIENCE_S,
    Loader,
    Slots,
    ahead_of,
    loads_backwards,
    look_delay,
    turns_ahead,
)
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import View
from stagger.errors import counted
from stagger.task.attempt_log import log


@dataclass
class Queue:
    """The place of server `server_id` in the queue, at one load.

    `backwards`: whether it should begin at the end of its span, since others are there later than at its start.
    """

    server_id: str
    total_blocks: int
    slots: Slots
    backwards: bool = False
    _ahead: list[Loader] = field(default_factory=list)
    _since: float | None = None

    def wait_s(self, view: View, now: float) -> float:
        """Seconds until the server should look again; 0 once it may load. `now`: seconds of a monotonic clock.

        It may load in its turn, and after PATIENCE_S seconds in which nothing has changed ahead of it.
        """
        loaders = {
            name: Loader(member.claim, name, range(member.target.start, member.target.end))
            for name, member in view.members.items()
            if member.state < ServerState.ONLINE
        }
        if self.server_id not in loaders:
            return 0.0
        mine = loaders[self.server_id]
        ahead = ahead_of(mine, loaders.values())
        served = [range(span.start, span.end) for span in view.kept()]
        turns = turns_ahead(mine, ahead, self.slots, total_blocks=self.total_blocks, served=served)
        if not turns:
            self.backwards = loads_backwards(mine, ahead, self.slots, total_blocks=self.total_blocks, served=served)
            return 0.0
        if self._since is None:
            log(f"waits for a loading slot: {counted(len(ahead), 'server')} with earlier claims load")
        if self._since is None or ahead != self._ahead:
            self._ahead, self._since = ahead, now
        if now - self._since > PATIENCE_S:
            log(f"loads beside server {ahead[0].server_id}, which has not loaded for {PATIENCE_S:g} s", "WARNING")
            return 0.0
        return look_delay(turns)
