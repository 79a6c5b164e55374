"""Counts the requests to a registry in remote storage: of servers and users when they start, and while they serve."""

from __future__ import annotations

from stagger.errors import counted
from stagger.spec.executors import SlurmSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import is_local

#: Of a server before it loads, beside one read of the record of each other server: two listings, one read of the latest
#: claim, its own claim and record. With `serve_for`, it also notes or reads when the swarm began.
JOIN_REQUESTS, BEGAN_REQUESTS = 5, 2

#: Of a user's first look, beside one read of each server's record: the listing, and the latest claim.
LOOK_REQUESTS = 2

#: Most seconds between two looks of a user while nothing changes (`stagger.blocks.serving.client.Timing.look_s`).
LOOK_S = 60.0

#: The share of a limit that starts leave: what a swarm makes while it serves should fit into it.
LEFT = 0.2


def registry_requests(spec: RunSpec, stage: StageSpec) -> int:
    """Requests of one process of a stage to registries when it starts: as a server, and as a user of swarms.

    Each server is assumed to find all others. 0 for a local run directory.
    """
    if is_local(spec.run_dir):
        return 0
    mine = 0
    if stage.blocks is not None:
        mine = JOIN_REQUESTS + stage.blocks.servers - 1 + (BEGAN_REQUESTS if stage.blocks.serve_for else 0)
    return mine + sum(LOOK_REQUESTS + servers_of(spec, swarm) for swarm in stage.uses)


def serving_rate(spec: RunSpec, swarm: StageSpec) -> float:
    """Requests per second to the registry of a swarm while it serves. 0 for a local run directory.

    At each heartbeat, a server lists the registry, reads all records, which have changed since, and writes its own.
    Each user lists it, and reads all records, at least once in LOOK_S.
    """
    if swarm.blocks is None or is_local(spec.run_dir):
        return 0.0
    servers = swarm.blocks.servers
    users = sum(at_once(user) for user in spec.users_of(swarm.name))
    return servers * (servers + 2) / swarm.blocks.heartbeat + users * (servers + 1) / LOOK_S


def serving_advice(spec: RunSpec, swarm: StageSpec, limit: float) -> str:
    """What to change if a swarm that serves makes more requests than starts leave of `limit`; empty if it does not."""
    rate = serving_rate(spec, swarm)
    if rate <= LEFT * limit:
        return ""
    assert swarm.blocks is not None
    servers = counted(swarm.blocks.servers, "server", "look")
    return (
        f"{swarm.name}: its {servers} at one another at each heartbeat, which, with those of its users, are about"
        f" {rate:,.0f} requests/s as long as it serves; starts leave {LEFT * limit:,.0f} of backend_limit"
        f" ({limit:,.0f}). Put run_dir on a shared file system, or give blocks a longer heartbeat and lease."
    )


def servers_of(spec: RunSpec, swarm: str) -> int:
    blocks = spec.stage(swarm).blocks
    return 0 if blocks is None else blocks.servers


def at_once(stage: StageSpec) -> int:
    """The most ranks of a stage that run at once."""
    executor = stage.executor
    if not isinstance(executor, SlurmSpec):
        return min(executor.workers, stage.tasks)
    jobs = -(-stage.tasks // executor.ranks_per_job)
    return min(executor.workers or jobs, jobs) * min(executor.most_at_once, executor.ranks_per_job)
