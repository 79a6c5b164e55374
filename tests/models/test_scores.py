"""Scores and embeddings agree with what transformers computes for each document alone, and do not depend on others."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from stagger.errors import StaggerError
from stagger.models import results
from stagger.models.batches import Piece
from stagger.models.microbatch import Microbatch
from stagger.models.results import pooled, token_logprobs
from stagger.models.steps import EmbedBlocks, ModelStep, ScoreBlocks
from stagger.pipeline import COUNTS, Document
from tests.models.conftest import Models
from tests.models.corpus import documents, plain_model, run

ENGINES = ["whole", "stream"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _counts() -> None:
    COUNTS.clear()


def bits(document: Document) -> bytes:
    logprobs: bytes = document.metadata["logprobs"].tobytes()
    return logprobs + repr(document.metadata["logprob_sum"]).encode()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_forty_documents_get_the_same_bits_alone_and_together(models: Models, architecture: str, dtype: str) -> None:
    step = ScoreBlocks(models(architecture), dtype=dtype, tokens=512, max_length=256, per_token=True)  # type: ignore[arg-type]
    alone = {one.id: bits(one) for document in documents(40) for one in run(step, [document])}
    together = documents(40)
    random.Random(0).shuffle(together)
    order = [one.id for one in together]
    found = run(step, together)
    assert [one.id for one in found] == order
    assert {one.id: bits(one) for one in found} == alone


@pytest.fixture(scope="module")
def scoring(models: Models) -> tuple[ScoreBlocks, dict[str, bytes]]:
    """A step with its model, and what it makes of each of twelve documents alone."""
    step = ScoreBlocks(models("llama"), tokens=256, max_length=96, stride=40, per_token=True)
    return step, {one.id: bits(one) for document in documents(12, seed=1) for one in run(step, [document])}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 11), max_size=30), st.sampled_from([0, 200, 2**20]), st.sampled_from(["whole", "stream"])
)
def test_the_numbers_of_a_document_depend_on_no_other(
    scoring: tuple[ScoreBlocks, dict[str, bytes]], chosen: list[int], buffered: int, engine: str
) -> None:
    known, alone = scoring
    step = ScoreBlocks(known.model, tokens=256, max_length=96, stride=40, per_token=True, buffer_tokens=buffered)
    step._loaded = known._loaded
    if step._loaded.engine.name != engine:
        step = ScoreBlocks(
            known.model,
            engine=engine,  # type: ignore[arg-type]
            tokens=256,
            max_length=96,
            stride=40,
            per_token=True,
            buffer_tokens=buffered,
        )
    given_documents = [documents(12, seed=1)[number] for number in chosen]
    found = run(step, given_documents)
    assert [bits(one) for one in found] == [alone[f"doc-{number}"] for number in chosen]


def test_scores_of_a_hundred_documents_are_the_loss_of_the_plain_model(models: Models) -> None:
    folder = models("llama")
    model, tokenizer = plain_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for one in run(ScoreBlocks(folder, tokens=1024, max_length=256), documents(100)):
        ids = tokenizer(one.text, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        found = one.metadata
        assert found["tokens"] == ids.shape[1] - 1
        assert found["logprob_mean"] == pytest.approx(-loss, rel=2e-6)
        assert found["logprob_sum"] == pytest.approx(-loss * found["tokens"], rel=2e-6)
        assert found["perplexity"] == pytest.approx(math.exp(loss), rel=2e-5)


def windowed(model: Any, ids: torch.Tensor, most: int, stride: int) -> list[float]:
    """The log-probability of each token but the first, window by window, each token in the first window that has it."""
    found: list[float] = []
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + most]
        with torch.no_grad():
            logprobs = model(input_ids=window[None]).logits[0, :-1].float().log_softmax(-1)
        of_targets = logprobs.gather(-1, window[1:, None])[:, 0].tolist()
        found += of_targets[len(found) - begin :]
        if begin + most >= len(ids):
            break
    return found


def test_windows_agree_with_a_straightforward_reference(models: Models) -> None:
    folder = models("gpt2")
    model, tokenizer = plain_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    step = ScoreBlocks(folder, tokens=300, max_length=50, stride=20, per_token=True)
    for one in run(step, documents(30)):
        expected = windowed(model, torch.tensor(tokenizer(one.text).input_ids), 50, 20)
        assert one.metadata["tokens"] == len(expected)
        assert one.metadata["logprobs"] == pytest.approx(expected, abs=2e-5)
    assert COUNTS["windows"] > 10


def test_windows_that_the_model_cannot_tell_apart_from_the_whole_give_its_loss(models: Models) -> None:
    """With a sliding window of 16 tokens in one block, 40 tokens of context are as good as all."""
    folder = models("mistral", num_hidden_layers=1)
    whole = run(ScoreBlocks(folder, max_length=512, per_token=True), documents(10))
    cut = run(ScoreBlocks(folder, max_length=64, stride=24, per_token=True), documents(10))
    assert max(one.metadata["tokens"] for one in whole) > 80
    for one, other in zip(whole, cut, strict=True):
        assert one.metadata["logprobs"] == pytest.approx(other.metadata["logprobs"], abs=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_layers_are_numbered_as_hidden_states_in_transformers(models: Models, architecture: str) -> None:
    folder = models(architecture)
    model, tokenizer = plain_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    found = {
        pool: run(EmbedBlocks(folder, layer=[0, 3, 5, -1], pool=pool, max_length=256, tokens=600), documents(8))
        for pool in ("mean", "last", "none")
    }
    for place, document in enumerate(documents(8)):
        ids = tokenizer(document.text, return_tensors="pt").input_ids
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for layer in (0, 3, 5, 6):
            expected, key = states[layer][0], f"embedding_{layer}"
            for pool, wanted in (("mean", expected.mean(0)), ("last", expected[-1]), ("none", expected)):
                state = found[pool][place].metadata[key]
                assert state.dtype == numpy.float32
                assert torch.from_numpy(state).allclose(wanted, atol=2e-6)


def test_the_embedding_alone_needs_no_block(models: Models) -> None:
    folder = models("llama")
    step = EmbedBlocks(folder, layer=0, pool="last")
    (document,) = run(step, [Document("the cat", "a")])
    table = plain_model(folder).get_input_embeddings().weight
    (token,) = transformers.AutoTokenizer.from_pretrained(folder)("the cat").input_ids[-1:]
    assert torch.equal(torch.from_numpy(document.metadata["embedding"]), table[token].detach())
    assert step._loaded.engine.model.loaded == set()


@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_states_of_a_long_document_are_those_of_its_windows(models: Models, pool: Any) -> None:
    folder = models("llama")
    (document,) = run(EmbedBlocks(folder, pool="none", max_length=40, stride=30), [Document("the cat " * 50, "a")])
    (found,) = run(EmbedBlocks(folder, pool=pool, max_length=40, stride=30), [Document("the cat " * 50, "a")])
    states = document.metadata["embedding"]
    assert len(states) > 100
    expected = {"mean": states.mean(0), "last": states[-1], "none": states}[pool]
    assert found.metadata["embedding"] == pytest.approx(expected, abs=1e-6)


def test_embeddings_have_the_same_bits_alone_and_together_and_are_float32(models: Models) -> None:
    folder = models("llama")
    for pool in ("mean", "last", "none"):
        step = EmbedBlocks(folder, dtype="bfloat16", layer=[2, -1], pool=pool, tokens=512, max_length=256)
        alone = [one.metadata for document in documents(10) for one in run(step, [document])]
        together = [one.metadata for one in run(step, documents(10))]
        for one, other in zip(alone, together, strict=True):
            for key in ("embedding_2", "embedding_6"):
                assert one[key].dtype == numpy.float32
                assert one[key].tobytes() == other[key].tobytes()


class SpiedEnds:
    """Ends that note the shapes of what they make logits of."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(hidden.shape))
        return hidden[..., : self.vocabulary]

    embed = normed = None


def test_logits_are_computed_for_some_places_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LOGITS", 4 * 40 * 32)
    tokens = torch.randint(0, 32, (4, 256), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn((4, 256, 32), generator=torch.Generator().manual_seed(0))
    ends: Any = SpiedEnds(32)
    found = token_logprobs(ends, Microbatch(0, tokens, (256,) * 4), hidden, 32)
    assert {shape[1] for shape in ends.shapes[:-1]} == {40}
    assert sum(shape[1] for shape in ends.shapes) == 256
    expected = hidden.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_padding_that_is_not_a_number_is_in_no_mean() -> None:
    hidden = torch.ones((2, 4, 3))
    hidden[:, 2:] = math.nan
    assert torch.equal(pooled(hidden, [Piece(0, 2, 0)], "mean")[0], torch.full((3,), 2.0))


def test_documents_without_tokens_to_score_or_embed_are_counted(models: Models) -> None:
    folder = models("llama")
    empty = run(ScoreBlocks(folder, per_token=True), [Document("", "a"), Document("cat", "b"), Document("", "c")])
    assert [one.id for one in empty] == ["a", "b", "c"]
    assert empty[0].metadata.pop("logprobs").tolist() == []
    assert {key: empty[0].metadata[key] for key in ("logprob_sum", "logprob_mean", "perplexity", "tokens")} == {
        "logprob_sum": 0.0,
        "logprob_mean": None,
        "perplexity": None,
        "tokens": 0,
    }
    assert empty[1].metadata["tokens"] == 1
    assert COUNTS["without_tokens"] == 2
    (start,) = run(EmbedBlocks(folder), [Document("", "a")])  # The tokenizer puts <s> there.
    assert start.metadata["embedding"].shape == (64,)


def test_truncated_documents_are_counted_and_scored_to_the_limit(models: Models) -> None:
    folder = models("llama")
    (document,) = run(ScoreBlocks(folder, max_length=32, on_long="truncate"), [Document("the cat " * 50, "a")])
    assert document.metadata["tokens"] == 31
    assert COUNTS["truncated"] == 1


def broken(folder: str, copy: Path) -> str:
    """A model whose last norm overflows."""
    model = plain_model(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.inf)
    model.save_pretrained(copy)
    return str(copy)


def test_values_that_are_not_finite_fail_the_rank_or_are_counted(models: Models, tmp_path: Path) -> None:
    folder = broken(models("llama"), tmp_path)
    for made, keys in (
        (lambda how: ScoreBlocks(folder, tokenizer=models("llama"), on_nonfinite=how), ["logprob_sum", "perplexity"]),
        (lambda how: EmbedBlocks(folder, tokenizer=models("llama"), on_nonfinite=how), ["embedding"]),
    ):
        with pytest.raises(
            StaggerError, match=r"document 'a'.*the weights hold numbers that are not finite: copy the model again"
        ):
            run(made("fail"), [Document("the cat", "a")])
        (document,) = run(made("count"), [Document("the cat", "a")])
        assert all(document.metadata[key] is None for key in keys)
    assert COUNTS["nonfinite"] == 2


@pytest.mark.parametrize(
    ("document", "parameters", "sentence"),
    [
        (Document(5, "a"), {}, "text of the document 'a' is not a string, but int"),  # type: ignore[arg-type]
        (Document("a\ud800", "a"), {}, r"text of the document 'a' is not valid Unicode .*surrogates"),
        (Document("the cat " * 90, "a"), {"on_long": "fail", "max_length": 64}, "The document 'a' is too long: it has"),
        (Document("x", "a", [], {"tokens": 3}), {}, "document 'a' has the key 'tokens' already.*prefix"),
    ],
)
def test_a_document_that_cannot_pass_is_named(
    models: Models, document: Document, parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(StaggerError, match=sentence):
        run(ScoreBlocks(models("llama"), **parameters), [document])


def test_a_tokenizer_of_another_model_is_found_out(models: Models) -> None:
    step = ScoreBlocks(models("llama", vocab_size=100))
    with pytest.raises(StaggerError, match="but the model has the tokens 0 to 99: give the tokenizer of this model"):
        run(step, [Document("the cat", "a")])


def test_a_shard_without_documents_needs_no_model() -> None:
    step: ModelStep = ScoreBlocks("/nowhere")
    assert run(step, []) == []
