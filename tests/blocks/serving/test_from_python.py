"""A swarm and its user from a Python script, on this machine: the files of one process, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagger import LocalExecutor, ReadJsonl, ScoreBlocks, StaggerError, WriteJsonl
from stagger.blocks.transformer_host import TransformerHost
from stagger.cli import head as looks
from stagger.launch.rehearsal import folder_of
from tests.conftest import contents, jsonl
from tests.kit.in_process import in_process
from tests.models.corpus import documents, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("llama"))


class Script:
    """What a user writes: a function of the script among the steps, and a class of the script that hosts blocks."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.model = model
        (folder / "documents").mkdir()
        for shard in range(2):
            records = [{"id": f"{shard}-{one.id}", "text": one.text} for one in documents(12, seed=shard)]
            (folder / "documents" / f"{shard}.jsonl").write_bytes(jsonl(records))
        notes = str(folder / "notes")

        class Host(TransformerHost):
            def load(self, blocks: range) -> None:
                super().load(blocks)
                with open(notes, "a") as file:
                    file.write(f"{self.context.rank}\n")

        self.host = Host

    def swarm(self, **blocks: Any) -> LocalExecutor:
        quick = {"heartbeat": 0.5, "lease": 5, "drain": 2, "mean_block_selection_delay": 0}
        hosts = {"model": self.model, "servers": 2, "num_blocks": 3, "host": self.host, **quick, **blocks}
        return LocalExecutor(name="swarm", run_dir=self.folder / "run", blocks=hosts)

    def score(self, out: str, engine: Any, **arguments: Any) -> LocalExecutor:
        def shorter(data: Any, rank: int, world_size: int) -> Any:
            for one in data:
                one.text = one.text[:200]
                yield one

        step = ScoreBlocks(None if engine == "swarm" else self.model, engine=engine, max_length=128)
        steps: list[Any] = [
            ReadJsonl(str(self.folder / "documents")),
            shorter,
            step,
            WriteJsonl(str(self.folder / out)),
        ]
        return LocalExecutor(steps, **{"name": "score", "run_dir": self.folder / "run", **arguments})


@pytest.fixture
def script(tmp_path: Path, model: str) -> Script:
    return Script(tmp_path, model)


def test_it_writes_the_files_of_one_process(script: Script) -> None:
    with in_process():
        script.score("whole", "whole", run_dir=script.folder / "alone").run()
    executor = script.score("out", "swarm", uses=script.swarm())
    run = executor.run()
    assert {stage.name: stage.done for stage in run.status().stages} == {"swarm": 2, "score": 1}
    assert contents(script.folder / "out") == contents(script.folder / "whole")
    assert set((script.folder / "notes").read_text().split()) == {"0", "1"}
    assert executor.run() == run, "the same script continues its run, in which nothing is left to do"


def test_a_rehearsal_and_a_look_compute_without_servers(script: Script) -> None:
    executor = script.score("out", "swarm", uses=script.swarm(host="transformer"))
    with in_process():
        rehearsal = executor.run(rehearse=1)
    assert rehearsal.stages == ("score",)
    (first,) = rehearsal.head(1)
    assert first.metadata["scored_by"]
    assert not (script.folder / "run").exists()
    assert not (script.folder / "out").exists()
    assert not (script.folder / "notes").exists()

    run = Path(folder_of(executor.spec)) / "run"
    (again,) = list(looks.documents(str(run), 3, None, None, removed=False, text_key=None))[:1]
    assert again == first


def test_a_look_at_a_pipeline_file_computes_without_servers(script: Script) -> None:
    steps = [{"read_jsonl": {"path": str(script.folder / "documents")}}, {"score_blocks": {"engine": "swarm"}}]
    stages = [
        {"name": "swarm", "blocks": {"model": script.model, "servers": 2, "host": "transformer"}},
        {"name": "score", "uses": ["swarm"], "pipeline": steps},
    ]
    file = script.folder / "file.yaml"
    file.write_text(json.dumps({"name": "both", "run_dir": str(script.folder / "run"), "stages": stages}))

    def look(step: int, stage: str) -> list[Any]:
        return list(looks.documents(str(file), step, stage, None, removed=False, text_key=None))

    assert all(document.metadata["scored_by"] for document in look(2, "score"))
    with pytest.raises(StaggerError, match="swarm hosts blocks, and has no documents: choose a stage that uses it"):
        look(1, "swarm")
    assert not (script.folder / "run").exists()


def test_a_stage_that_needs_its_servers_is_not_rehearsed(script: Script) -> None:
    user = LocalExecutor([ReadJsonl(str(script.folder / "documents")), WriteJsonl("out")], name="mine", run_dir="run")
    swarm = script.swarm()
    swarm.run_dir = user.run_dir
    user.uses = swarm
    with pytest.raises(StaggerError, match=r"mine uses the servers of swarm, and a rehearsal has none: try .*limit=1"):
        user.run(rehearse=1)
    with pytest.raises(StaggerError, match="swarm hosts blocks, which no stage uses: there is nothing to rehearse"):
        swarm.run(rehearse=1)
