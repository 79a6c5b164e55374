"""Servers of blocks from Python, beside the stages that use them: the stages of a pipeline file, and each mistake."""

from __future__ import annotations

import json
import re
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, Run, RunFailed, ScoreBlocks, SlurmExecutor, StaggerError, WriteJsonl
from stagger.api.executors import PipelineExecutor, run_stages, spec_of, with_upstream
from stagger.blocks.host import HostContext, Speed
from stagger.blocks.server.simulated_host import SimulatedHost
from stagger.blocks.swarm_place import END
from stagger.spec.load import load_file
from tests.conftest import ROOT, PipelineFiles, output_ids
from tests.kit.in_process import in_process
from tests.kit.runs import EVERYTHING, SLURM

QUICK = {"mean_block_selection_delay": 0, "heartbeat": 0.2, "lease": 2, "drain": 1}
HOSTS: dict[str, Any] = {"total": 8, "servers": 2, "host_options": {"room": 4, "seconds_per_block": 0}, **QUICK}

Make = Callable[..., PipelineExecutor]


@pytest.fixture
def swarm(tmp_path: Path) -> Make:
    """Makes the executor of a swarm."""

    def make(kind: type[PipelineExecutor] = LocalExecutor, **arguments: Any) -> PipelineExecutor:
        return kind(**{"name": "swarm", "run_dir": str(tmp_path / "run"), "blocks": HOSTS, **arguments})

    return make


@pytest.fixture
def score(tmp_path: Path, shards: Path) -> Make:
    """Makes the executor of a stage that uses one."""

    def make(*steps: Any, kind: type[PipelineExecutor] = LocalExecutor, **arguments: Any) -> PipelineExecutor:
        pipeline = [ReadJsonl(str(shards)), *steps, WriteJsonl(str(tmp_path / "out"))]
        return kind(**{"pipeline": pipeline, "name": "score", "run_dir": str(tmp_path / "run"), **arguments})

    return make


def config(folder: Path, blocks: int = 6) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": blocks}))
    return folder


@pytest.mark.parametrize("kind", [LocalExecutor, SlurmExecutor])
def test_the_stages_are_those_of_a_pipeline_file(
    kind: type[PipelineExecutor], swarm: Make, score: Make, pipeline_file: PipelineFiles, tmp_path: Path
) -> None:
    executor = {**SLURM, "gpus_per_task": 1, "mem_per_cpu_gb": 8} if kind is SlurmExecutor else {"type": "local"}
    settings = {key: value for key, value in executor.items() if key != "type"}
    model = config(tmp_path / "model")
    blocks = {"model": str(model), "servers": 3, "host": "my_hosts:Host", "host_options": {"a:b": {}, "room": 4}}
    steps = [
        {"read_jsonl": {"path": str(pipeline_file.shards)}},
        {"write_jsonl": {"path": str(tmp_path / "out")}},
    ]
    retries = {"max": 2}
    stages = [
        {"name": "score", "uses": ["swarm"], "tasks": 4, "pipeline": steps, "executor": executor},
        {"name": "swarm", "blocks": blocks, "retries": retries, "executor": executor},
    ]
    file = tmp_path / "file.yaml"
    file.write_text(json.dumps({"name": "score", "run_dir": str(tmp_path / "run"), "stages": stages}))
    (tmp_path / "my_hosts.py").write_text("from stagger.blocks.server.simulated_host import SimulatedHost as Host\n")

    hosts = swarm(kind, blocks={**blocks, "model": model}, retries=retries, **settings)
    mine = spec_of(with_upstream([score(kind=kind, uses=hosts, tasks=4, **settings)]), reading=True)
    written = load_file(str(file))
    assert mine.stages[0].model_dump() == written.stages[0].model_dump()
    assert mine.stages[0].blocks is not None
    assert mine.stages[0].blocks.total == 6
    assert mine.stages[1].model_dump(exclude={"pipeline"}) == written.stages[1].model_dump(exclude={"pipeline"})


def test_a_swarm_of_a_class_of_the_script_runs_beside_its_user_and_ends_with_it(
    swarm: Make, score: Make, tmp_path: Path
) -> None:
    made = str(tmp_path / "made")
    flag = tmp_path / "flag"

    class Host(SimulatedHost):  # Not importable: its servers get it by value.
        def __init__(self, context: HostContext, **options: Any) -> None:
            super().__init__(context, **options)
            Path(f"{made}-{context.rank}").touch()

    def fail(data: Any, rank: int, world_size: int) -> Iterator[Any]:
        if rank and not flag.exists():
            raise RuntimeError("no")
        yield from data

    executor = score(fail, uses=[swarm(blocks={**HOSTS, "host": Host})], tasks=2)
    run = executor.run(wait=False)
    with pytest.raises(RunFailed) as raised:
        run.wait()
    assert raised.value.failed_ranks == {"score": [1]}
    assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-0", "made-1"]
    ended = tmp_path / "run" / "swarm" / "registry" / END
    assert "ended" in json.loads(ended.read_text())["reason"]
    flag.touch()
    run.retry(wait=True)
    assert output_ids(tmp_path / "out") == EVERYTHING
    assert run.stages == ("swarm", "score")
    assert [(stage.name, stage.done, stage.failed) for stage in run.status().stages] == [
        ("swarm", 2, 0),
        ("score", 2, 0),
    ]
    assert len(run.outputs()) == 2
    assert executor.run() == run, "there is nothing left to do"
    assert not (tmp_path / "run" / "swarm" / "launches" / "3").exists()


def test_a_swarm_alone_serves_for_its_time(swarm: Make) -> None:
    blocks = {**HOSTS, "servers": 1, "serve_for": 0.5}
    with in_process():
        run = swarm(blocks=blocks).run()
    assert run.status()["swarm"].done == 1
    with pytest.raises(StaggerError, match=r"another run of stage swarm: blocks\.drain: 1\.0 before, 2\.0 now\. Give"):
        swarm(blocks={**blocks, "drain": 2}).run()


def test_a_dry_run_shows_the_job_scripts_and_refuses_what_a_launch_does(
    swarm: Make, score: Make, tmp_path: Path
) -> None:
    hosts = swarm(SlurmExecutor, time=10)
    executor = score(kind=SlurmExecutor, uses=hosts, tasks=3, time=10)
    shown = executor.dry_run(limit=2)
    assert [(stage["name"], stage["ranks"], stage["uses"]) for stage in shown["stages"]] == [
        ("swarm", 2, []),
        ("score", 2, ["swarm"]),
    ]
    assert "#SBATCH --array=0-1" in shown["stages"][0]["arrays"][0]["script"]
    hosts.blocks = {**HOSTS, "host": NoHost}
    with pytest.raises(StaggerError, match="NoHost is not a block host"):
        executor.dry_run()
    lock = threading.Lock()
    with pytest.raises(StaggerError, match="cannot be sent to its tasks"):
        score(lambda data, rank, world_size: iter((lock, *data))).dry_run()
    with pytest.raises(StaggerError, match=r"LocalExecutor\.dry_run: limit: expected a whole number of at least 1"):
        score().dry_run(limit=0)
    assert not (tmp_path / "run").exists()


class NoHost:
    """Lacks the methods of a host."""


class OtherHost:
    """A host that takes no options."""

    def __init__(self, context: HostContext) -> None:
        self.context = context

    def room(self) -> int:
        return 1

    def measure(self) -> Speed:
        return Speed(1.0, 1.0)

    def load(self, blocks: range) -> None: ...

    def unload(self, blocks: range) -> None: ...

    def serve(self, stop: threading.Event) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pipeline": [print]}, "LocalExecutor: pipeline: not allowed with `blocks`; leave it out"),
        ({"tasks": 3}, "LocalExecutor: tasks: not allowed with `blocks`: the number of servers is blocks.servers"),
        ({"bytes_per_task": 3}, "bytes_per_task: not allowed with `blocks`: the number of servers is blocks.servers"),
        ({"blocks": None}, r"pipeline is missing: pass a list of steps, or blocks=\{...\} for servers"),
        ({"blocks": []}, "LocalExecutor: blocks: expected a mapping of settings, not an empty list"),
        ({"blocks": {"total": 8}}, r"LocalExecutor: blocks\.servers: this key is missing; write for example servers=8"),
        ({"blocks": {"servers": 2}}, "LocalExecutor: blocks: the number of blocks is missing: set `total`, or `model`"),
        ({"blocks": {**HOSTS, "servers": 0}}, r"LocalExecutor: blocks\.servers: expected a whole number of at least 1"),
        ({"blocks": {**HOSTS, "sarvers": 1}}, r"LocalExecutor: blocks\.sarvers: unknown key; did you mean 'servers'"),
        (
            {"blocks": {**HOSTS, "host": "transfomer"}},
            r"blocks\.host: expected `transformer`, .*, not 'transfomer'; did you mean",
        ),
        ({"blocks": {**HOSTS, "host": NoHost()}}, "host: expected a class, or its name, .*, not .*NoHost"),
        ({"blocks": {**HOSTS, "host": 3}}, "host: expected a class, or its name, .*, not the number 3"),
        (
            {"blocks": {**HOSTS, "host": types.SimpleNamespace(load=print)}},
            "not an object of the class SimpleNamespace. Each server makes an object",
        ),
        ({"workers": 1}, r"workers is 1, but 2 servers must run at once: leave it out"),
        ({"servers": 2}, r"LocalExecutor: servers: unknown argument; it is a key of blocks: pass blocks=\{'servers'"),
        ({"use": None}, "LocalExecutor: use: unknown argument; did you mean 'uses'"),
        ({"blocks": {**HOSTS, "host_options": {"password": "secret-12"}}}, r"blocks.*a secret in clear text"),
    ],
)
def test_servers_that_make_no_stage_are_refused_at_once(swarm: Make, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(StaggerError, match=said):
        swarm(**arguments)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (
            {"host": NoHost},
            r"LocalExecutor 'swarm': blocks: host: .*test_swarms:NoHost is not a block host: it has no room, meas",
        ),
        ({"host": OtherHost}, r"'swarm': blocks: host_options: .*OtherHost does not accept them: .*'room'"),
        ({"host": "my_host:Host"}, r"'swarm': blocks: host: 'my_host:Host' cannot be imported: ModuleNotFoundError"),
        (
            {"total": None, "model": "/nowhere"},
            r"LocalExecutor 'swarm': blocks\.model: /nowhere: there is no config\.json",
        ),
    ],
)
def test_what_a_launch_finds_wrong_with_servers_is_told_before_anything_is_written(
    swarm: Make, score: Make, tmp_path: Path, blocks: dict[str, Any], said: str
) -> None:
    executor = score(uses=swarm(blocks={**HOSTS, **blocks}))
    with pytest.raises(StaggerError, match=said):
        executor.run()
    assert not (tmp_path / "run").exists()


def test_the_model_is_read_with_the_storage_options_of_the_whole_run(swarm: Make, score: Make, tmp_path: Path) -> None:
    """They may be given to another executor, so the constructor of the swarm's reads nothing."""
    hosts = swarm(blocks={"model": "s3://bucket/model", "servers": 1})
    endpoint = {"s3": {"endpoint_url": "http://127.0.0.1:9", "key": "${USER_KEY}"}}
    with pytest.raises(StaggerError, match="USER_KEY"):
        score(uses=hosts, storage_options=endpoint)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"uses": "swarm"}, "uses: pass an executor, or a list of them, not 'swarm'"),
        ({"uses": ["swarm"]}, "uses: pass executors, not 'swarm'"),
        ({"uses": Run("run")}, "uses: pass the executor, not the handle of its run: .* same run_dir"),
        (
            {"run_dir": "/elsewhere"},
            "'score': run_dir is '/elsewhere', but LocalExecutor 'swarm' has .*: give them the",
        ),
        ({"name": "swarm"}, "2 executors are called 'swarm'; give each stage a name of its own"),
        ({"kind": SlurmExecutor}, "one of them runs on Slurm and the other on this machine: give both the same"),
    ],
)
def test_users_that_cannot_use_them_are_refused_at_once(
    swarm: Make, score: Make, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(StaggerError, match=said):
        score(**{"uses": swarm(), **arguments})


def test_stages_are_used_and_waited_for_as_they_can_be(swarm: Make, score: Make, tmp_path: Path) -> None:
    first = LocalExecutor([print], name="first", run_dir=tmp_path / "run")
    with pytest.raises(StaggerError, match="uses 'first', which has no `blocks`; to wait until a stage is done, write"):
        score(uses=first)
    hosts = swarm()
    with pytest.raises(StaggerError, match="uses 'swarm' and waits for its end"):
        score(uses=hosts, depends=hosts)
    with pytest.raises(StaggerError, match="servers of blocks use no other servers: leave `uses` out"):
        swarm(name="second", uses=hosts)
    with pytest.raises(StaggerError, match=r"leave blocks\.serve_for of 'swarm' out"):
        score(uses=swarm(blocks={**HOSTS, "serve_for": 5}))
    user = score(uses=hosts)
    hosts.depends = user
    with pytest.raises(
        StaggerError, match="wait for each other: score -> swarm -> score; remove one of their `depends`"
    ):
        user.run()
    with pytest.raises(StaggerError, match="executors: pass executors, not 'score'"):
        run_stages(["score"])  # type: ignore[list-item]


def test_the_engine_swarm_needs_uses(score: Make, tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match=r"engine: swarm needs servers: .*in Python: uses=EXECUTOR"):
        score(ScoreBlocks(engine="swarm")).run()
    assert not (tmp_path / "run").exists()


def test_the_example_of_the_documentation_makes_two_stages() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "blocks=" in code)
    names: dict[str, Any] = {}
    exec(example.partition("run = ")[0], names)
    swarm, score = names["score"].spec.stages
    assert (swarm.name, swarm.tasks, score.name, score.uses) == ("swarm", 24, "score", ("swarm",))
