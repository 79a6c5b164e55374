"""A model on S3: a launch counts the requests that open it, and a limit lets it have one in flight at a time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stagger import EmbedBlocks, ReadJsonl, ScoreBlocks
from stagger.blocks.host import HostContext
from stagger.blocks.step import HostBlocks
from stagger.blocks.transformer_host import TransformerHost
from stagger.executor.slurm_start import SlurmStart
from stagger.models.checkpoint import Checkpoint
from stagger.pipeline.task_context import TaskContext
from stagger.plan.requests import not_yet_planned
from stagger.plan.stage_plan import make_plan
from stagger.rundir.run_folder import StageInput
from stagger.storage.storage import Storage
from tests.conftest import documents, jsonl
from tests.kit.records import spec
from tests.kit.s3_server import S3Server
from tests.models.architectures import config_of
from tests.models.corpus import save_tokenizer
from tests.s3.conftest import ENGINES


def uploaded(local: Path, name: str) -> str:
    for file in local.iterdir():
        Storage().write(f"s3://data/{name}/{file.name}", file.read_bytes())
    return f"s3://data/{name}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in three files: one has a header that is longer than what is read of it first."""
    local = tmp_path_factory.mktemp("requests")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of("llama"))
    model.save_pretrained(local, max_shard_size="500KB")
    save_tokenizer(local)
    first = min(local.glob("*.safetensors"))
    data = first.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": {"made": "x" * 20_000}}
    text = json.dumps(header).encode()
    first.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return local


@pytest.mark.parametrize("engine", ENGINES)
def test_the_requests_that_open_a_model_are_counted(folder: Path, s3: S3Server, engine: str) -> None:
    """config.json twice, the listing, the index, three headers, one of them in two parts, and the tokenizer's files."""
    model = uploaded(folder, f"counted-{engine}")
    step, storage = ScoreBlocks(model), Storage({"s3": {"engine": engine}})
    counted = step.start_requests(storage)
    assert counted == 3 + 1 + 3 + 1 + 5
    s3.reset()
    step.bind(TaskContext(storage, 0, 1, [], "test"))
    step._model()
    assert len(s3.log()) == counted
    assert ScoreBlocks(model, tokenizer=str(folder)).start_requests(storage) == counted - 5
    assert EmbedBlocks(str(folder), tokenizer=model).start_requests(storage) == 5
    assert ScoreBlocks(str(folder)).start_requests(storage) == 0


def test_the_requests_of_a_server_that_opens_its_model_are_counted(folder: Path, s3: S3Server) -> None:
    model, storage = uploaded(folder, "served"), Storage({"s3": {"engine": "obstore"}})
    total = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    counted = HostBlocks({"total": total, "servers": 1, "model": model, "host": "transformer"}).start_requests(storage)
    s3.reset()
    context = HostContext(total, model, 0, lambda: False, storage=storage)
    host = TransformerHost(context, interface="lo", encrypt=False)
    stop = threading.Event()
    stop.set()
    host.serve(stop)
    assert len(s3.log()) == counted == 2 + 1 + 3 + 1
    local = HostBlocks({"total": total, "servers": 1, "model": str(folder), "host": "transformer"})
    assert local.start_requests(storage) == 0


def test_a_job_opens_the_model_once_in_each_worker(folder: Path, s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_bytes(jsonl(documents(0, 3)))
    run = spec({"type": "slurm", "ranks_per_job": 8, "ranks_at_once": 2}, "only")
    stage = run.stages[0].model_copy(update={"tasks": 8, "backend_limit": 100.0})
    local = SlurmStart(run, stage, StageInput(remote_outputs=8))
    steps = [ReadJsonl(str(tmp_path)), ScoreBlocks(uploaded(folder, "once"))]
    planned = make_plan(Storage(), stage, steps)
    assert planned.input.step_requests == 13
    with_model = SlurmStart(run, stage, StageInput(remote_outputs=8, step_requests=13))
    assert with_model.requests(8) - local.requests(8) == 2 * 13


def test_a_stage_that_is_not_planned_yet_counts_a_model_in_one_file() -> None:
    run = spec({"type": "slurm"}, "only")
    step = run.stages[0].pipeline[0].model_copy(update={"use": "score_blocks", "params": {"model": "s3://data/m"}})
    stage = run.stages[0].model_copy(update={"pipeline": [run.stages[0].pipeline[0], step]})
    assert not_yet_planned(stage).step_requests == 9
    assert not_yet_planned(run.stages[0]).step_requests == 0


def test_with_a_limit_one_request_for_weights_is_in_flight(folder: Path, s3: S3Server) -> None:
    model = uploaded(folder, "limited")
    for share, limited in ((0.0, False), (0.1, True)):
        assert TaskContext(Storage(), 0, 1, [], "test", request_share=share).limited is limited
        storage = Together(1 if limited else 2)
        step = ScoreBlocks(model)
        step.bind(TaskContext(storage, 0, 1, [], "test", request_share=share))
        checkpoint: Checkpoint = step._model().engine.source.checkpoint
        checkpoint.read(checkpoint.tensors)
        assert (storage.most > 1) is not limited


class Together(Storage):
    """Counts the reads of weights that are in flight together. Each waits for `parties` of them at first."""

    def __init__(self, parties: int) -> None:
        super().__init__()
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(parties)
        self._left = parties

    def fill(self, *arguments: Any) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self._left -= 1
            meets = self._left >= 0
        if meets:
            self._meeting.wait(timeout=60)
        super().fill(*arguments)
        with self._lock:
            self._now -= 1
