"""Small models with a tokenizer, documents for them, and steps that run in the process of the test."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from stagger.models.steps import ModelStep
from stagger.pipeline import Document
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage
from tests.models.architectures import config_of

WORDS = ["hello", "world", "the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "more", "dog"]


def save_model(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> str:
    """A model with random weights, and its tokenizer, in a folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = config_of(architecture)
    for name, value in changes.items():
        setattr(config, name, value)
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes and some words, of fewer than 512 tokens, which puts <s> ahead of each text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def documents(count: int, seed: int = 0, most: int = 150) -> list[Document]:
    """Documents of 1 to `most` words."""
    draw = random.Random(seed)
    sizes = [min(most, 1 + int(draw.lognormvariate(3.0, 1.0))) for _ in range(count)]
    return [Document(" ".join(draw.choices(WORDS, k=size)), f"doc-{i}") for i, size in enumerate(sizes)]


def run(step: ModelStep, given: Iterable[Document], task: TaskContext | None = None) -> list[Document]:
    """What a step makes of documents, as the only rank. It keeps its model for the next call."""
    step.bind(task or TaskContext(Storage(), 0, 1, [], "test"))
    return list(step(iter(given), 0, 1))


def plain_model(folder: str, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model of transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
