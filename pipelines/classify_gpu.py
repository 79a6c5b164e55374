"""A text classifier as a step: loaded once in a job, it labels documents in batches.

Copy it and change it: `stagger init classify_gpu`. It needs torch and transformers, which only the jobs import.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from stagger import Document, stateless


@stateless
def classify(
    data: Iterable[Document], rank: int, world_size: int, *, model: str, batch_size: int = 64, max_tokens: int = 512
) -> Iterator[Document]:
    """Add `label` and `score` to the metadata of each document.

    The folder `model` holds a sequence classifier of transformers and its tokenizer; it may be a name on the Hub. The
    score is the probability of the label; of a model with one output, such as a regression, it is that output.
    `batch_size` documents go through the model at once: more need more memory of the GPU. It sees the first
    `max_tokens` tokens of each.
    """
    documents = iter(data)
    while batch := list(islice(documents, batch_size)):
        found = scores(model, [document.text for document in batch], max_tokens)
        for document, (label, score) in zip(batch, found, strict=True):
            document.metadata["label"], document.metadata["score"] = label, score
            yield document


def scores(model: str, texts: list[str], max_tokens: int) -> list[tuple[str, float]]:
    """The label and the score of each text."""
    import torch

    tokenizer, network, device = loaded(model)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)
    with torch.inference_mode():
        outputs = network(**tokens).logits.float()
    if outputs.shape[1] > 1:
        best = outputs.softmax(dim=1).max(dim=1)
        values, indices = best.values.tolist(), best.indices.tolist()
    else:
        values, indices = outputs[:, 0].tolist(), [0] * len(texts)
    return [(network.config.id2label[index], value) for index, value in zip(indices, values, strict=True)]


@functools.lru_cache(maxsize=1)
def loaded(model: str) -> tuple[Any, Any, str]:
    """The tokenizer, the network and its device. Loaded once in a process, which runs several ranks of a job."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype).to(device).eval()
    print(f"loaded {model} on {device}")
    return AutoTokenizer.from_pretrained(model), network, device


def above(document: Document, min_score: float) -> bool | str:
    """Keep documents with at least this score; the reason is that of the others."""
    return document.metadata["score"] >= min_score or "low_score"
