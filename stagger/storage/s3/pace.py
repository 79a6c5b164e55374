"""The least pace of a body: one that comes slower would keep a task waiting for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

from stagger.errors import counted
from stagger.storage.faults import TooSlow

#: Bytes that must arrive within PACE_S seconds of waiting.
PACE_BYTES = 64 * 2**10
PACE_S = 300.0


def paced(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces of a body. Raises TooSlow when they come too slowly; the consumer's own time does not count."""
    arrived, waited = 0, 0.0
    while True:
        began = time.monotonic()
        chunk = next(chunks, None)
        if chunk is None:
            return
        arrived, waited = arrived + len(chunk), waited + time.monotonic() - began
        if arrived >= PACE_BYTES:
            arrived, waited = 0, 0.0
        elif waited > PACE_S:
            raise TooSlow(f"{counted(arrived, 'byte')} arrived in {waited:.0f} s")
        yield chunk
