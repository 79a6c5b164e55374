"""Servers of a small swarm, and clients with short heartbeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.serving.client import Client
from stagger.blocks.serving.connections import Timing
from stagger.blocks.serving.keys import KeyPair
from tests.kit.span_servers import HEARTBEAT, MODEL, Servers

QUICK = Timing(HEARTBEAT, look_s=(0.05, 0.5), late_s=2.0, first_late_s=2.0)


@pytest.fixture(scope="session")
def keys() -> KeyPair:
    return KeyPair.new()


@pytest.fixture
def servers(tmp_path: Path, keys: KeyPair) -> Iterator[Servers]:
    swarm = Servers(tmp_path, keys.public)
    yield swarm
    swarm.end()


@pytest.fixture
def client(keys: KeyPair) -> Iterator[Callable[..., Client]]:
    """Make clients of a swarm. Their log is `client.log`."""
    clients: list[Client] = []

    def make(servers: Servers, **options: Any) -> Client:
        log: list[str] = []
        made = Client(servers.look, MODEL, keys, **{"timing": QUICK, "tell": log.append, **options})
        made.log = log  # type: ignore[attr-defined]
        clients.append(made)
        return made

    yield make
    for one in clients:
        one.close()
