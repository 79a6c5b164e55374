"""Whole and streamed models give the same numbers, within bounded memory, and leave nothing behind."""

from __future__ import annotations

import gc
import shutil
import signal
import threading
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stagger.errors import Interrupted, StaggerError
from stagger.models.block_source import BlockSource
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut_model import CutModel
from stagger.models.engines import LocalEngine, Stream, Whole, windows
from stagger.models.microbatch import Microbatch
from stagger.pipeline import COUNTS
from stagger.storage.storage import Storage
from tests.conftest import PATIENCE_S
from tests.models.architectures import config_of

#: Dense, with experts and blocks of two sizes, and with an embedding that is the head.
ARCHITECTURES = ["llama", "deepseek3", "gpt2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    made = {}
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config_of(name)).save_pretrained(folder, max_shard_size="300KB")
        made[name] = str(folder)
    return made


class Opened:
    """A model and what runs it. `alive` has the weights of blocks that are anywhere in memory, as weak references."""

    def __init__(self, folder: str, dtype: torch.dtype = torch.float32, keep: int = 0) -> None:
        self.storage = Storage()
        self.checkpoint = Checkpoint.open(self.storage, folder)
        self.model = CutModel(self.checkpoint, dtype)
        self.source = BlockSource(self.checkpoint, self.model, keep)

    def whole(self) -> Whole:
        return Whole(self.model, self.source, lambda: self.storage.check())

    def stream(self, tokens: int) -> Stream:
        item = self.model.dtype.itemsize
        return Stream(self.model, self.source, lambda: self.storage.check(), tokens * 64 * item)


def microbatches(count: int = 5) -> list[Microbatch]:
    random = torch.Generator().manual_seed(1)
    made = []
    for number in range(count):
        lengths = (32, 9 + number, 0)
        tokens = torch.randint(3, 500, (3, 32), generator=random)
        places = torch.arange(32)
        tokens[places >= torch.tensor(lengths)[:, None]] = 0
        made.append(Microbatch(number, tokens, lengths))
    return made


def kept(batch: Microbatch, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    return hidden.clone()


def states(engine: LocalEngine, layers: list[int], count: int = 5) -> list[tuple[int, dict[int, torch.Tensor]]]:
    return [(batch.number, found) for batch, found in engine.run(microbatches(count), layers, kept)]


def equal(one: list[tuple[int, dict[int, Any]]], other: list[tuple[int, dict[int, Any]]]) -> bool:
    return [number for number, _ in one] == [number for number, _ in other] and all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[layer], theirs[layer]) for layer in ours)
        for (_, ours), (_, theirs) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_streamed_is_whole_bit_for_bit_with_windows_of_any_size(
    folders: dict[str, str], architecture: str, dtype: torch.dtype
) -> None:
    layers = [0, 2, 6]
    whole = Opened(folders[architecture], dtype).whole()
    expected = states(whole, layers)
    logits = whole.ends.logits(expected[0][1][6])
    for opened in (Opened(folders[architecture], dtype), Opened(folders[architecture], dtype, keep=10**9)):
        for tokens in (1, 2 * 96, 3 * 96, 5 * 96, 10**6):
            engine = opened.stream(tokens)
            assert equal(states(engine, layers), expected)
            assert torch.equal(engine.ends.logits(expected[0][1][6]), logits)


def test_streamed_and_whole_is_what_the_plain_model_computes(folders: dict[str, str]) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"]).eval()
    batch = microbatches(1)[0]
    with torch.inference_mode():
        expected = plain(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
    for engine in (Opened(folders["llama"]).whole(), Opened(folders["llama"]).stream(1)):
        ((_, found),) = states(engine, [engine.total_blocks], count=1)
        assert torch.equal(engine.ends.logits(found[engine.total_blocks]), expected)


def test_blocks_behind_the_last_wanted_layer_are_not_read(folders: dict[str, str]) -> None:
    for engine in (Opened(folders["llama"]).whole(), Opened(folders["llama"]).stream(96)):
        engine.model.load_ends()
        before = engine.source.bytes_read
        found = states(engine, [0])
        assert engine.source.bytes_read == before
        assert [list(one) for _, one in found] == [[0]] * 5
        states(engine, [2], count=1)
        assert engine.source.bytes_read - before <= 1.05 * sum(map(engine.model.block_bytes, range(2)))


@pytest.mark.parametrize("layers", [[], [-1], [3, 7]])
def test_layers_that_the_model_does_not_have_are_refused(folders: dict[str, str], layers: list[int]) -> None:
    for engine in (Opened(folders["llama"]).whole(), Opened(folders["llama"]).stream(96)):
        with pytest.raises(ValueError, match="the model has layers 0 to 6"):
            list(engine.run(microbatches(), layers, kept))


def test_no_microbatches_are_no_results(folders: dict[str, str]) -> None:
    for engine in (Opened(folders["llama"]).whole(), Opened(folders["llama"]).stream(96)):
        assert list(engine.run([], [6], kept)) == []


class Reads:
    """Notes the blocks that are read, and which of them are in memory, wherever they are held."""

    def __init__(self, model: CutModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self.of_block = {block: threading.Semaphore(0) for block in range(model.total_blocks)}
        self._alive: dict[int, list[weakref.ref[Any]]] = {}
        self._lock = threading.Lock()
        original = model.weights

        def weights(block: int) -> Any:
            made = original(block)
            storages = [weakref.ref(tensor.untyped_storage()) for tensor in made.values() if tensor.dim() > 1]
            with self._lock:
                self._alive.setdefault(block, []).extend(storages)
            self.most = max(self.most, self.alive())
            self.of_block[block].release()
            return made

        monkeypatch.setattr(model, "weights", weights)

    def alive(self) -> int:
        """Blocks whose weights are in memory."""
        with self._lock:
            return sum(any(one() is not None for one in storages) for storages in self._alive.values())

    def wait_for(self, block: int) -> None:
        """Wait for one more reading of a block."""
        assert self.of_block[block].acquire(timeout=PATIENCE_S)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_while_a_window_passes_a_block_the_next_one_is_read_and_no_other(
    folders: dict[str, str], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(folders[architecture])
    reads = Reads(opened.model, monkeypatch)
    blocks, loaded = opened.model.total_blocks, []

    def waiting(batch: Microbatch, layer: int, hidden: torch.Tensor) -> None:
        loaded.append(len(opened.model.loaded))
        if batch.number in (0, 2) and 0 < layer < blocks:
            reads.wait_for(layer)
        if batch.number == 0 and layer == blocks:
            reads.wait_for(0)
            reads.wait_for(0)

    windows_of_two = opened.stream(2 * 96)
    assert len(list(windows_of_two.run(microbatches(4), range(blocks + 1), waiting))) == 4
    assert reads.most == 2
    assert set(loaded) == {0, 1}
    assert not any(semaphore.acquire(blocking=False) for semaphore in reads.of_block.values())
    gc.collect()
    assert reads.alive() == 0
    assert opened.model.loaded == set()


def test_blocks_are_kept_on_the_host_as_far_as_they_fit(folders: dict[str, str]) -> None:
    sizes = Opened(folders["llama"]).model.block_bytes(0)
    reads = {}
    for kept_blocks in (0, 4, 6):
        engine = Opened(folders["llama"], keep=kept_blocks * sizes).stream(96)
        states(engine, [6], count=1)
        once = engine.source.bytes_read
        states(engine, [6], count=3)
        reads[kept_blocks] = round((engine.source.bytes_read - once) / sizes)
    assert reads == {0: 18, 4: 6, 6: 0}


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "stagger-blocks-ahead"]


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_a_consumer_may_stop_early_and_the_engine_runs_again(folders: dict[str, str], kind: str) -> None:
    opened = Opened(folders["llama"])
    engine: LocalEngine = opened.whole() if kind == "whole" else opened.stream(2 * 96)
    run = engine.run(microbatches(), [6], kept)
    assert isinstance(run, Generator)
    assert next(run)[0].number == 0
    run.close()
    assert no_thread_is_left()
    assert len(opened.model.loaded) == (6 if kind == "whole" else 0)
    assert len(states(engine, [6])) == 5
    assert no_thread_is_left()


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_what_the_caller_raises_comes_out_and_leaves_no_thread_and_no_block(folders: dict[str, str], kind: str) -> None:
    opened = Opened(folders["llama"])
    engine: LocalEngine = opened.whole() if kind == "whole" else opened.stream(2 * 96)

    def failing(batch: Microbatch, layer: int, hidden: torch.Tensor) -> None:
        if batch.number == 1:
            raise LookupError("no such document")

    with pytest.raises(LookupError, match="no such document"):
        list(engine.run(microbatches(), [3, 6], failing))
    assert no_thread_is_left()
    assert len(opened.model.loaded) == (6 if kind == "whole" else 0)


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_an_error_of_the_reading_thread_is_a_sentence_that_names_the_block(
    folders: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(folders["llama"])
    engine: LocalEngine = opened.whole() if kind == "whole" else opened.stream(10**6)
    original = opened.model.weights

    def weights(block: int) -> Any:
        if block == 3:
            raise OSError(5, "Input/output error")
        return original(block)

    monkeypatch.setattr(opened.model, "weights", weights)
    with pytest.raises(StaggerError, match=r"Block 3 of .*llama.* cannot be read: \[Errno 5\] Input/output error"):
        states(engine, [6])
    assert no_thread_is_left()
    monkeypatch.setattr(opened.model, "weights", original)
    assert equal(states(engine, [6]), states(Opened(folders["llama"]).whole(), [6]))


def test_a_model_that_changes_under_a_run_is_an_error(folders: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["llama"], folder)
    engine = Opened(str(folder)).stream(96)
    run = engine.run(microbatches(2), [6], kept)
    next(run)
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(StaggerError, match="the model has changed while it was read"):
        list(run)
    assert no_thread_is_left()


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_a_stop_signal_interrupts_between_microbatches(folders: dict[str, str], kind: str) -> None:
    opened = Opened(folders["llama"])
    engine: LocalEngine = opened.whole() if kind == "whole" else opened.stream(10**6)
    passed = []

    def stopping(batch: Microbatch, layer: int, hidden: torch.Tensor) -> None:
        passed.append((batch.number, layer))
        if (batch.number, layer) == (1, 3):
            opened.storage.check = interrupt

    with pytest.raises(Interrupted):
        list(engine.run(microbatches(), range(1, 7), stopping))
    assert passed[-1] == ((1, 6) if kind == "whole" else (1, 3))
    assert no_thread_is_left()


def test_a_stop_signal_interrupts_the_wait_for_a_block(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(folders["llama"])
    asked, stopped = threading.Event(), threading.Event()
    original = opened.model.weights

    def weights(block: int) -> Any:
        if block == 2:
            asked.set()
            assert stopped.wait(PATIENCE_S)
        return original(block)

    def check() -> None:
        if asked.is_set():
            stopped.set()
            interrupt()

    monkeypatch.setattr(opened.model, "weights", weights)
    opened.storage.check = check
    with pytest.raises(Interrupted):
        list(opened.stream(96).run(microbatches(), [6], kept))
    assert no_thread_is_left()


def interrupt() -> None:
    raise Interrupted(signal.SIGTERM)


def test_tokens_and_bytes_of_weights_are_counted(folders: dict[str, str]) -> None:
    tokens = sum(sum(batch.lengths) for batch in microbatches())
    for kind, times in (("whole", 1), ("stream", 3)):
        COUNTS.clear()
        opened = Opened(folders["llama"])
        engine: LocalEngine = opened.whole() if kind == "whole" else opened.stream(2 * 96)
        states(engine, [6])
        states(engine, [6])
        assert COUNTS["tokens"] == 2 * tokens
        blocks = sum(map(opened.model.block_bytes, range(6)))
        ends = opened.model.ends_bytes
        passes = 1 if kind == "whole" else 2 * times
        assert 1 <= COUNTS["weight_bytes"] / (passes * blocks + ends) <= 1.1
        assert "weights_wait_ms" in COUNTS
    COUNTS.clear()


def test_windows_take_what_fits_and_at_least_one() -> None:
    batches = microbatches(7)

    def sizes(most: int) -> list[tuple[int, bool]]:
        return [(len(window), another) for window, another in windows(batches, lambda batch: 10, most)]

    assert sizes(1) == [(1, True)] * 6 + [(1, False)]
    assert sizes(30) == [(3, True), (3, True), (1, False)]
    assert sizes(70) == [(7, False)]
    assert [batch.number for window, _ in windows(batches, lambda batch: 10, 30) for batch in window] == [*range(7)]
    assert list(windows([], lambda batch: 10, 30)) == []
