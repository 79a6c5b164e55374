"""The engine `swarm` and the host `transformer`: the numbers of one process, bit for bit, and who is not used."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
import transformers

from stagger.blocks.coverage import SwarmGone
from stagger.blocks.host import HostContext
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import ServerRecord
from stagger.blocks.server.registry import Registry
from stagger.blocks.serving.span_server import NotHere
from stagger.blocks.serving.swarm_engine import SwarmEngine, open_swarm
from stagger.blocks.serving.tensors import as_parts, as_tensor
from stagger.blocks.serving.wire import Request, write_lengths
from stagger.blocks.swarm_place import SwarmPlace, registry_folder
from stagger.blocks.transformer_host import TransformerHost
from stagger.errors import StaggerError
from stagger.models.microbatch import Microbatch
from stagger.models.open_engine import open_engine
from stagger.models.steps import EmbedBlocks, ScoreBlocks
from stagger.pipeline import COUNTS, Document
from stagger.pipeline.task_context import Circumstances, TaskContext
from stagger.storage.storage import Storage
from tests.models.corpus import run, save_model

torch.set_num_threads(1)
BLOCKS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=BLOCKS)


class Swarm:
    """Servers in threads of the test, with a registry as theirs."""

    def __init__(self, folder: str, stage_dir: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.place = SwarmPlace(
            "swarm", str(stage_dir), BLOCKS, 2, 1.0, 5.0, model=folder, host="transformer", host_options=options
        )
        self.registry = Registry(Storage(), registry_folder(str(stage_dir)), BLOCKS)
        self.hosts: dict[str, TransformerHost] = {}
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.ended: list[str] = []
        self.engines: list[SwarmEngine] = []

    def _serve(self, host: TransformerHost) -> None:
        try:
            host.serve(self.stop)
        except StaggerError as error:
            self.ended.append(str(error))

    def start(self, rank: int, blocks: range, **about: Any) -> TransformerHost:
        context = HostContext(BLOCKS, self.folder, rank, lambda: False, stage_dir=self.place.stage_dir)
        host = TransformerHost(context, **self.options)
        host.plan(blocks)
        for block in blocks:
            host.load(range(block, block + 1))
        self.threads.append(threading.Thread(target=self._serve, args=(host,), daemon=True))
        self.threads[-1].start()
        name = f"{rank:05d}.1"
        self.hosts[name] = host
        record = ServerRecord(
            name, "node", host.port, ServerState.ONLINE, blocks.start, blocks.stop, (blocks.start, blocks.stop), 9.0, 0
        )
        self.registry.announce(replace(record, about={**host.about(), **about}, pass_throughput=9.0))
        return host

    def engine(self, dtype: str = "auto") -> SwarmEngine:
        _, opened = open_swarm(Storage(), {"swarm": self.place.fields()}, None, None, dtype)
        self.engines.append(opened(256))
        return self.engines[-1]

    def end(self) -> None:
        for engine in self.engines:
            engine.close()
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def swarm(folder: str, tmp_path: Path) -> Iterator[Callable[..., Swarm]]:
    made: list[Swarm] = []

    def make(**options: Any) -> Swarm:
        made.append(Swarm(folder, tmp_path / f"stage{len(made)}", **options))
        return made[-1]

    yield make
    for one in made:
        one.end()


def microbatches(count: int = 6) -> list[Microbatch]:
    torch.manual_seed(1)
    lengths = [(64, 3, 20), (1, 64, 0), (17, 17, 17)]
    return [
        Microbatch(number, torch.randint(1, 500, (3, 64)), lengths[number % len(lengths)]) for number in range(count)
    ]


def states(engine: Any, layers: list[int], given: list[Microbatch]) -> list[tuple[int, dict[int, torch.Tensor]]]:
    found = engine.run(given, layers, lambda batch, layer, hidden: hidden.clone())
    return [(batch.number, kept) for batch, kept in found]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_states_of_every_layer_are_those_of_the_whole_model(
    swarm: Callable[..., Swarm], folder: str, dtype: str
) -> None:
    there = swarm(dtype=dtype)
    there.start(0, range(4))
    there.start(1, range(2, 6))
    engine, given = there.engine(), microbatches()
    whole = open_engine(Storage(), folder, "whole", dtype, rows=3, length=64)
    for layers in ([0, 1, 2, 3, 4, 5, 6], [6], [0], [3]):
        expected = states(whole, layers, given)
        got = states(engine, layers, given)
        assert [number for number, _ in got] == list(range(6)), "in order"
        for (_, one), (_, other) in zip(got, expected, strict=True):
            assert one.keys() == other.keys() == set(layers)
            assert all(torch.equal(one[layer], other[layer]) for layer in layers)
    assert engine.devices == whole.devices


def test_only_the_blocks_that_are_needed_need_servers(swarm: Callable[..., Swarm]) -> None:
    there = swarm()
    there.start(0, range(3))
    assert len(states(there.engine(), [2, 3], microbatches())) == 6


def test_servers_with_other_numbers_are_not_used(swarm: Callable[..., Swarm]) -> None:
    there = swarm()
    there.start(0, range(6), fingerprint="another")
    there.start(1, range(6), dtype="bfloat16")
    there.start(2, range(6), public_key="")
    there.start(3, range(6), address=None)
    good = there.start(4, range(6))
    engine = there.engine()
    assert len(states(engine, [6], microbatches())) == 6
    assert good.counters()["requests"] == 6
    refused = {name: why.partition(" (")[0] for name, why in engine._found.refused.items()}
    assert refused == {
        "00000.1": "it has other files of the model",
        "00001.1": "it has another dtype",
        "00002.1": "it has no key, and host_options.encrypt is not false",
        "00003.1": "it serves no hidden states: it has no address",
    }


def test_another_dtype_than_that_of_the_servers_is_refused(swarm: Callable[..., Swarm]) -> None:
    there = swarm()
    assert there.engine("float32").dtype == torch.float32
    with pytest.raises(StaggerError, match=r"dtype is bfloat16, but swarm computes in torch.float32: leave it out"):
        there.engine("bfloat16")


def test_users_wait_no_longer_than_their_patience(swarm: Callable[..., Swarm]) -> None:
    there = swarm()
    there.start(0, range(3))
    there.place = replace(there.place, patience_s=0.01)
    with pytest.raises(SwarmGone, match="blocks 3-5 of swarm have had no server for"):
        states(there.engine(), [6], microbatches())


def test_a_server_that_breaks_is_given_up_and_ends(swarm: Callable[..., Swarm], folder: str) -> None:
    there = swarm()
    broken = there.start(0, range(6))
    there.start(1, range(6))
    engine, given = there.engine(), microbatches()
    expected = states(engine, [6], given)
    assert len(broken._proofs) > 0, "it has computed something"
    broken.model._cut.blocks[3].mlp.down_proj.weight.fill_(float("inf"))
    got = states(engine, [6], given)
    assert all(torch.equal(one[6], other[6]) for (_, one), (_, other) in zip(got, expected, strict=True))
    ((name, why),) = engine._connected().evicted.items()
    assert name == "00000.1"
    assert re.match(
        r"it failed: NotFinite: the states of \d+ tokens are not finite, and neither are others any more", why
    )


def test_weights_that_are_not_finite_give_what_the_whole_model_gives(swarm: Callable[..., Swarm], folder: str) -> None:
    there = swarm()
    whole = open_engine(Storage(), folder, "whole", "auto", rows=3, length=64)
    states(whole, [6], microbatches(1))  # Which loads its weights.
    for model in (whole.model, there.start(0, range(6)).model, there.start(1, range(6)).model):
        model._cut.blocks[3].mlp.down_proj.weight.fill_(float("inf"))
    expected, got = (states(engine, [2, 6], microbatches()) for engine in (whole, there.engine()))
    assert expected[0][1][6].isnan().any()
    for (_, one), (_, other) in zip(got, expected, strict=True):
        assert all(torch.equal(one[layer].nan_to_num(), other[layer].nan_to_num()) for layer in (2, 6))
    assert there.ended == [], "it is not the servers' fault"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that overflows in block 3 at the token `x`, and at no other.

    The first number of a state is 0, but for that token: block 3 makes infinity of it, and of nothing else.
    """
    folder = tmp_path_factory.mktemp("overflowing")
    save_model(folder, num_hidden_layers=BLOCKS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    token = transformers.AutoTokenizer.from_pretrained(folder)("x", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[token, 0] = 1
        for block in model.model.layers:
            block.self_attn.o_proj.weight[0] = 0
            block.mlp.down_proj.weight[0] = 0
        model.model.layers[3].mlp.gate_proj.weight[:, 0] = 1e30
        model.model.layers[3].mlp.up_proj.weight[:, 0] = 1e30
    model.save_pretrained(folder)
    return str(folder)


def written(documents: list[Document]) -> bytes:
    return b"\n".join(orjson.dumps(document.metadata, option=orjson.OPT_SERIALIZE_NUMPY) for document in documents)


@pytest.mark.parametrize("made", [ScoreBlocks, partial(EmbedBlocks, layer=[2, 4, 6], pool="mean")])
@pytest.mark.parametrize("spans", [[range(6)], [range(6), range(6)], [range(4), range(2, 6), range(3, 5)]])
def test_a_document_that_overflows_is_counted_or_named_as_by_the_whole_model(
    tmp_path: Path, overflowing: str, made: Any, spans: list[range]
) -> None:
    there = Swarm(overflowing, tmp_path)
    for rank, span in enumerate(spans):
        there.start(rank, span)
    task = TaskContext(Storage(), 0, 1, [], "test", circumstances=Circumstances(uses={"swarm": there.place.fields()}))
    # Three of ten overflow; they pass the model beside others, and one after another.
    texts = [
        f"the cat sat on {'a' if number in (3, 4, 7) else 'a mat'} {'x' * (number in (3, 4, 7))}"
        for number in range(10)
    ]
    given = [Document(text * (1 + number), f"doc-{number}") for number, text in enumerate(texts)]
    options = {"tokens": 128, "max_length": 64, "buffer_tokens": 128}
    found: dict[str, tuple[bytes, int, str]] = {}
    for engine, circumstances in (("whole", None), ("swarm", task)):
        step = made(overflowing, engine=engine, on_nonfinite="count", **options)
        COUNTS.clear()
        out = run(step, copy.deepcopy(given), circumstances)
        counted = COUNTS["nonfinite"]
        strict = made(overflowing, engine=engine, **options)
        with pytest.raises(StaggerError) as error:
            run(strict, copy.deepcopy(given), circumstances)
        there.engines += [one._loaded.engine for one in (step, strict) if engine == "swarm"]
        found[engine] = written(out), counted, str(error.value)
    assert found["swarm"] == found["whole"]
    assert found["whole"][1] == 3
    assert "document 'doc-3'" in found["whole"][2]
    assert [host.server.counts["failed"] for host in there.hosts.values()] == [0] * len(spans)
    there.end()


def test_a_span_that_shrinks_gets_a_microbatch_as_far_as_it_reaches(swarm: Callable[..., Swarm]) -> None:
    there = swarm()
    host = there.start(0, range(1, 5))
    host.unload(range(3, 5))
    (batch,) = microbatches(1)
    hidden = torch.randn(3, 64, 64)
    request = Request(0, 1, 5, "float32", (3, 64, 64), 1000, write_lengths(batch.lengths), as_parts(hidden), (2, 4))
    done = host.compute(request)
    assert (done.end, list(done.states), host.span()) == (3, [2], (1, 3))
    assert torch.equal(as_tensor(done.hidden, torch.float32, (3, 64, 64)), host.model.run(hidden, batch, range(1, 3)))
    with pytest.raises(NotHere):
        host.compute(replace(request, start=3, layers=()))


def test_room_and_speed_and_what_the_registry_shows(swarm: Callable[..., Swarm]) -> None:
    there = swarm(tokens=256)
    host = there.start(0, range(0))
    assert host.room() == BLOCKS
    speed = host.measure()
    assert speed.pass_rps == speed.forward_rps > 0
    assert host.model.loaded == set()
    states(there.engine(), [0], microbatches())
    assert host.counters()["bytes_loaded"] > 0
    assert "secret" not in repr(host.about())


@pytest.mark.parametrize(
    ("uses", "given", "message"),
    [
        ({}, {}, "engine: swarm needs servers"),
        ({"a": {}, "b": {}}, {}, "the stage uses a, b: choose one, as in swarm: a"),
        ({"a": {}}, {"swarm": "c"}, "swarm: 'c' is not in `uses` of the stage, which has a"),
        ({"a": {"host": "simulated"}}, {}, "the servers of a serve no hidden states"),
        ({"a": {"model": None}}, {}, "the servers of a serve no hidden states"),
        ({"a": {}}, {"model": "/other"}, "model is /other, but a has /model: leave model out"),
        ({"a": {"host_options": {"dtype": "bfloat16"}}}, {"dtype": "float16"}, "dtype is float16, but a has bfloat16"),
    ],
)
def test_each_mistake_is_a_sentence(uses: dict[str, dict[str, Any]], given: dict[str, str], message: str) -> None:
    place = SwarmPlace("a", "stage", BLOCKS, 2, 1.0, 5.0, model="/model", host="transformer")
    swarms = {name: {**place.fields(), **changes} for name, changes in uses.items()}
    with pytest.raises(StaggerError, match=message):
        open_swarm(Storage(), swarms, given.get("swarm"), given.get("model"), given.get("dtype", "auto"))
