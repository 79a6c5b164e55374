"""What servers and users of a swarm ask of a registry in a bucket: the numbers that `backend_limit` relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stagger.blocks.server.block_server import BlockServer, Identity
from stagger.blocks.server.registry import Registry
from stagger.pipeline.task_context import StopFlag
from stagger.plan.registry_requests import LOOK_S, registry_requests, serving_advice, serving_rate
from stagger.plan.requests import requests_per_start
from stagger.rundir.run_folder import StageInput
from stagger.spec.block_settings import BlockSettings
from stagger.spec.blocks import HOST_STEP
from stagger.spec.models import RunSpec
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server, running

SERVERS = 4


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running("--bucket", "runs") as made:
        for name, value in (("ENDPOINT_URL", made.endpoint), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
            monkeypatch.setenv(f"AWS_{name}", value)
        yield made


def run_of(run_dir: str, servers: int = SERVERS, tasks: int = 20, **blocks: Any) -> RunSpec:
    hosts = {"total": 12, "servers": servers, **blocks}
    slurm = {"type": "slurm"}
    user = {"name": "score", "uses": ["swarm"], "tasks": tasks, "pipeline": [{"read_jsonl": {"path": "in"}}]}
    swarm = {"name": "swarm", "pipeline": [HOST_STEP], "blocks": hosts, "tasks": servers}
    stages = [{**one, "executor": slurm} for one in (swarm, user)]
    return RunSpec.model_validate({"name": "run", "run_dir": run_dir, "cwd": "/", "stages": stages})


def test_a_start_counts_what_servers_and_users_ask_of_the_registry(server: S3Server) -> None:
    spec, storage = run_of("s3://runs/x"), Storage({"s3": {"engine": "obstore"}})
    swarm, score = spec.stages

    def counted(does: Callable[[], Any]) -> int:
        server.reset()
        does()
        return len(server.log())

    def registry(name: str = "") -> Registry:
        return Registry(storage, "s3://runs/x/registry", 12, name)

    settings = BlockSettings(total=12, servers=SERVERS, host="simulated", model=None)
    counts = []
    for rank in range(SERVERS):
        name = f"{rank:05d}.1"
        one = BlockServer(settings, None, registry(name), Identity(name, "", None, True), StopFlag())  # type: ignore[arg-type]
        counts.append(counted(lambda one=one: one.join(6, 1.0)))  # type: ignore[misc]
    assert counts[-1] == max(counts) == registry_requests(spec, swarm)
    assert requests_per_start(spec, swarm, StageInput()) == 2 + counts[-1] + 3

    reader = registry()
    assert counted(reader.refresh) == registry_requests(spec, score)
    assert counted(reader.refresh) == 1, "nothing has changed"

    assert one.record is not None
    records = [member.record for member in registry().refresh().members.values()]

    def heartbeat() -> None:
        one.registry.refresh()
        one.registry.announce(records[-1])  # type: ignore[arg-type]

    heartbeat()
    for record in records[:-1]:
        registry().announce(record)  # type: ignore[arg-type]
    beats = counted(heartbeat)
    users = 20 * (SERVERS + 1) / LOOK_S
    assert serving_rate(spec, swarm) == SERVERS * beats / 15 + users


def test_a_local_registry_costs_no_requests() -> None:
    spec = run_of("/lustre/run")
    assert [registry_requests(spec, stage) for stage in spec.stages] == [0, 0]
    assert serving_advice(spec, spec.stage("swarm"), 1.0) == ""


def test_a_launch_warns_of_a_swarm_that_needs_more_than_starts_leave_of_the_limit() -> None:
    spec = run_of("s3://runs/x", servers=64, tasks=500)
    said = serving_advice(spec, spec.stage("swarm"), 3500.0)
    assert said.startswith("swarm: its 64 servers look at one another at each heartbeat")
    assert "about 823 requests/s as long as it serves; starts leave 700 of backend_limit (3,500)." in said
    assert serving_advice(run_of("s3://runs/x", servers=64, tasks=500, heartbeat=60, lease=180), spec.stages[0], 3500)
    assert not serving_advice(spec, spec.stage("swarm"), 5000.0)
