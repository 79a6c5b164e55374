"""A host without a model, for rehearsals and tests: loading only takes time, and it serves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TypeVar, cast

from stagger.blocks.host import HostContext, Speed
from stagger.errors import StaggerError

#: Seconds between two checks, during a load, whether the process should stop.
NAP_S = 0.05


class SimulatedHost:
    """A host with the given speed. From a list, server r takes value r mod length: machines of several kinds.

    Args:
        room: number of blocks that fit.
        forward_rps: requests per second that one block computes.
        network_rps: requests per second that the network carries.
        seconds_per_block: seconds to load a block.
        fail_after: seconds of serving after which it fails; by default never.
    """

    def __init__(
        self,
        context: HostContext,
        room: int | Sequence[int] = 10,
        forward_rps: float | Sequence[float] = 1000.0,
        network_rps: float | Sequence[float] = 1000.0,
        seconds_per_block: float = 3.0,
        fail_after: float | Sequence[float | None] | None = None,
    ) -> None:
        self._context = context
        self._room = of_rank(room, context.rank)
        self._speed = Speed(of_rank(forward_rps, context.rank), of_rank(network_rps, context.rank))
        self._seconds_per_block = seconds_per_block
        self._fail_after = of_rank(fail_after, context.rank)
        self.workload = f"simulated {self._speed}"

    def room(self) -> int:
        return self._room

    def measure(self) -> Speed:
        return self._speed

    def load(self, blocks: range) -> None:
        self._sleep(len(blocks) * self._seconds_per_block)

    def unload(self, blocks: range) -> None:
        """There is nothing to drop."""

    def serve(self, stop: threading.Event) -> None:
        if stop.wait(self._fail_after):
            return
        raise StaggerError(f"the simulated host fails after {self._fail_after:g} s (fail_after)")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._context.stopping():
            time.sleep(min(left, NAP_S))


T = TypeVar("T")


def of_rank(value: T | Sequence[T], rank: int) -> T:
    """The value for server `rank`: from a list, or the one value for all."""
    return value[rank % len(value)] if isinstance(value, (list, tuple)) else cast("T", value)
