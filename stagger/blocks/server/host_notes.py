"""What a host says about itself: the optional methods `about` and `counters` of `stagger.blocks.host.OptionalHost`."""

from __future__ import annotations

from typing import Any

import orjson

from stagger.blocks.host import Host
from stagger.errors import StaggerError, counted

#: Most bytes of what a host says about itself: every server and every client reads it.
MOST_BYTES = 8192


def told(host: Host, method: str) -> dict[str, Any]:
    """What a method of the host returns; empty if the host does not have it.

    Raises StaggerError when it is no JSON object with text keys, or has more than MOST_BYTES.
    """
    if not callable(call := getattr(host, method, None)):
        return {}
    found = call()
    what = f"{method}() of the host"
    if not isinstance(found, dict):
        raise StaggerError(f"{what} returned {type(found).__name__}, not a dict.")
    try:
        data = orjson.dumps(found)
    except TypeError as error:
        raise StaggerError(f"{what} returned what JSON cannot hold: {error}.") from None
    if len(data) > MOST_BYTES:
        size = counted(len(data), "byte")
        raise StaggerError(f"{what} returned {size} of JSON; a record holds at most {MOST_BYTES:,}.")
    copied: dict[str, Any] = orjson.loads(data)  # The host may go on changing its own.
    return copied
