"""The ready pipeline `classify_gpu`, on a processor, with a small model without training."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from stagger.launch.launch import Wishes, launch
from stagger.spec.changes import Changes
from stagger.spec.load import load_file
from tests.conftest import read_jsonl
from tests.datatrove.both import Places
from tests.kit.runs import completions


def save_model(folder: Path, tokenizer: Path) -> None:
    """Save a classifier with random weights."""
    tokens = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), pad_token="<unk>", unk_token="<unk>")
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        initializer_range=1.0,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokens.save_pretrained(folder)


def test_each_document_is_labelled_in_its_place_and_the_model_is_loaded_once(
    places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    model = places.folder / "model"
    save_model(model, places.materials / "tokenizer.json")
    os.environ.update(INPUT=str(places.materials / "documents"), OUTPUT=str(places.folder / "out"), MODEL=str(model))
    changes = Changes(("pipeline.classify.batch_size=3", "pipeline.filter.params.min_score=0.75"), "local", tasks=2)
    launch(load_file("classify_gpu", changes), Wishes()).raise_if_failed()
    found = [
        each
        for folder in ("kept", "removed")
        for path in sorted((places.folder / "out" / folder).glob("*.zst"))
        for each in read_jsonl(path)
    ]
    given = [each for path in sorted((places.materials / "documents").iterdir()) for each in read_jsonl(path)]
    assert sorted(each["id"] for each in found) == sorted(each["id"] for each in given)
    texts = {each["id"]: each["text"] for each in given}
    assert all(each["text"] == texts[each["id"]] for each in found)
    assert {each["metadata"]["label"] for each in found} == {"LABEL_0", "LABEL_1"}
    for each in found:
        assert (each["metadata"]["score"] >= 0.75) == ("filter_reason" not in each["metadata"])
    assert capsys.readouterr().out.count("loaded ") == 1  # By two ranks.
    assert len(completions(places.folder / "out" / "run")) == 2
