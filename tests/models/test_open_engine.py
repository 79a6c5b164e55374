"""Which engine a model gets, by the memory that is free, and what people read about it."""

from __future__ import annotations

import weakref

import pytest
import torch
import transformers

from stagger.errors import StaggerError
from stagger.models import open_engine as opening
from stagger.models.block_source import BlockSource
from stagger.models.checkpoint import Checkpoint
from stagger.models.choice import EngineName, Needs, Place, choose
from stagger.models.cut_model import CutModel
from stagger.models.engines import LocalEngine, Stream
from stagger.models.memory import Widths, activations
from stagger.models.microbatch import Microbatch
from stagger.models.open_engine import needs_of, open_engine, streaming
from stagger.models.pace import measure
from stagger.storage.storage import Storage
from tests.models.architectures import config_of

GB = 10**9

#: A model of 70 billion parameters in bfloat16.
LLAMA_70B = Needs(
    model="/models/llama-70b",
    blocks=80,
    largest=1_710 * 10**6,
    ends=4 * GB,
    activations=3 * GB,
    places=[Place(free=78 * GB, blocks=137 * GB)],
    on_gpus=True,
)


def with_places(*places: Place, on_gpus: bool = True) -> Needs:
    return Needs("/models/llama-70b", 80, 1_710 * 10**6, 4 * GB, 3 * GB, places, on_gpus)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("llama")
    transformers.AutoModelForCausalLM.from_config(config_of("llama"), dtype=torch.bfloat16).save_pretrained(made)
    return str(made)


def opened(folder: str, engine: EngineName = "auto", dtype: str = "auto") -> LocalEngine:
    return open_engine(Storage(), folder, engine, dtype, rows=4, length=64)


def test_a_model_that_does_not_fit_is_streamed_and_the_log_line_has_the_numbers() -> None:
    assert choose(LLAMA_70B, "auto") == (
        "stream",
        "engine stream: the model's 80 blocks take 137 GB, the device has 78 GB free",
    )


def test_a_model_that_fits_is_run_as_a_whole() -> None:
    name, why = choose(with_places(Place(159 * GB, 137 * GB)), "auto")
    assert name == "whole"
    assert why == "engine whole: the model's 80 blocks take 137 GB, the device has 159 GB free"


def test_whole_needs_a_tenth_more_than_weights_ends_and_activations_on_each_device() -> None:
    need = int(1.1 * (137 + 4 + 3) * GB)
    assert choose(with_places(Place(need, 137 * GB)), "auto")[0] == "whole"
    assert choose(with_places(Place(need - GB, 137 * GB)), "auto")[0] == "stream"
    half = Place(90 * GB, 68 * GB)
    assert choose(with_places(half, half), "auto")[0] == "whole"
    name, why = choose(with_places(half, Place(60 * GB, 68 * GB)), "auto")
    assert name == "stream"
    assert why.endswith("the 2 devices have 150 GB free")


def test_a_processor_holds_one_block_more_than_a_gpu() -> None:
    free = int(1.1 * (2 * 1.71 + 7) * GB) + 1
    assert choose(with_places(Place(free, 137 * GB)), "stream")[0] == "stream"
    with pytest.raises(StaggerError):
        choose(with_places(Place(free, 137 * GB), on_gpus=False), "stream")


def test_a_model_of_which_no_block_fits_is_refused_with_numbers_and_what_to_do() -> None:
    with pytest.raises(StaggerError) as raised:
        choose(with_places(Place(8 * GB, 137 * GB)), "auto")
    assert str(raised.value) == (
        "/models/llama-70b does not fit, not even block by block: 2 blocks of 1.7 GB, the embedding and the head"
        " (4.0 GB), a microbatch (3.0 GB) and a tenth more are 11.5 GB; the device has 8.0 GB free. Request a GPU with"
        " more memory, or use smaller microbatches (tokens), or dtype: bfloat16."
    )
    with pytest.raises(StaggerError, match=r"this process has 8\.0 GB of memory left\. Request more memory"):
        choose(with_places(Place(8 * GB, 137 * GB), on_gpus=False), "auto")


def test_whole_is_refused_only_where_not_even_the_weights_fit() -> None:
    assert choose(with_places(Place(142 * GB, 137 * GB)), "whole")[0] == "whole"
    with pytest.raises(StaggerError, match=r"does not fit as a whole: .* 137 GB, .* 140 GB free. Use engine: stream"):
        choose(with_places(Place(140 * GB, 137 * GB)), "whole")


def test_open_engine_runs_what_fits_here(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(folder).name == "whole"
    assert opened(folder, "stream").name == "stream"
    engine = opened(folder)
    needs = needs_of(engine.model, folder, range(6), 0)
    taken = activations(Widths.of(engine.model.config.to_dict(), 64, fused=True), 4, 64, item_bytes=2)
    monkeypatch.setattr(opening, "free_memory", lambda device: 11 * (needs.streamed + taken) // 10 + 10**4)
    assert isinstance(opened(folder), Stream)
    monkeypatch.setattr(opening, "free_memory", lambda device: 10**5)
    with pytest.raises(StaggerError, match=r"does not fit, not even block by block: 3 blocks of 0\.07 MB"):
        opened(folder)


def test_the_window_is_what_memory_is_left_up_to_a_number_of_tokens(folder: str) -> None:
    checkpoint = Checkpoint.open(Storage(), folder)
    cut = CutModel(checkpoint, torch.bfloat16)

    def window(free: int) -> int:
        needs = needs_of(cut, folder, range(6), 10**6)
        place = Place(free, needs.places[0].blocks)
        limited = Needs(folder, 6, needs.largest, needs.ends, needs.activations, [place], on_gpus=False)
        engine = streaming(cut, checkpoint, limited, lambda: None)
        assert engine.source.keep_bytes == 0
        return engine.window_bytes

    streamed = needs_of(cut, folder, range(6), 10**6).streamed
    assert window(11 * (streamed + 5000) // 10 + 1) == 5000
    assert window(100 * GB) == 2**14 * 64 * 2


def test_a_smaller_part_of_a_model_needs_less_memory(folder: str) -> None:
    cut = CutModel(Checkpoint.open(Storage(), folder), torch.bfloat16)
    assert 2 * needs_of(cut, folder, range(3), 0).all_blocks == needs_of(cut, folder, range(6), 0).all_blocks


def test_auto_takes_the_dtype_of_the_checkpoint_and_others_are_named(folder: str) -> None:
    assert opened(folder).model.dtype == torch.bfloat16
    assert opened(folder, dtype="float32").model.dtype == torch.float32
    with pytest.raises(StaggerError, match="dtype: 'int8' is none that models are run in; choose auto, bfloat16"):
        opened(folder, dtype="int8")


def test_a_block_is_measured_by_passing_a_microbatch_through_it(folder: str) -> None:
    checkpoint = Checkpoint.open(Storage(), folder)
    cut = CutModel(checkpoint, torch.bfloat16)
    cut.load(2, BlockSource(checkpoint, cut).weights(2))
    pace = measure(cut, Microbatch(0, torch.ones((4, 64), dtype=torch.long), (64,) * 4), block=2)
    assert pace.device
    assert pace.tokens == 256
    assert pace.tokens_per_s > 0
    assert cut.loaded == {2}


def test_the_blocks_of_an_engine_that_nobody_holds_are_freed_before_the_next_one_is_opened(folder: str) -> None:
    engine = opened(folder, "whole")
    batch = Microbatch(0, torch.ones((4, 64), dtype=torch.long), (64,) * 4)
    assert len(list(engine.run([batch], [6], lambda batch, layer, hidden: None))) == 1
    block = weakref.ref(engine.model)
    del engine
    opened(folder)
    assert block() is None
