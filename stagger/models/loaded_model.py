"""A model that is ready to take documents, with its tokenizer. It is kept for all ranks of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stagger.models.batches import Pieces
from stagger.models.config_facts import HIDDEN, PLACES, VOCABULARY, number_of
from stagger.models.engines import LocalEngine, Stream
from stagger.models.open_engine import open_engine
from stagger.models.passing import Passage, Work
from stagger.models.results import Pool, bytes_beside
from stagger.models.scores import Embeddings, Marks, Scores
from stagger.models.settings import Settings
from stagger.models.shapes import Shapes
from stagger.models.tokens import Tokenizer
from stagger.storage.storage import Storage

#: Characters of a model's fingerprint that documents get.
FINGERPRINT = 12


@dataclass(frozen=True)
class LoadedModel:
    """An engine with its tokenizer, and how documents become microbatches for it."""

    engine: LocalEngine
    tokenizer: Tokenizer
    settings: Settings
    pieces: Pieces
    shapes: Shapes
    vocabulary: int

    @classmethod
    def open(
        cls,
        storage: Storage,
        settings: Settings,
        config: dict[str, Any],
        blocks: int | None,
        engine_of: Callable[[int], LocalEngine] | None = None,
        *,
        one_request: bool = False,
    ) -> LoadedModel:
        """Open the model with this config.json, of which the first `blocks` blocks are needed; None for all.

        `engine_of` makes the engine, for microbatches of up to that many places; by default one in this
        process, with one request to remote storage in flight at a time if `one_request`.

        Raises StaggerError when it does not suit the settings, or the memory.
        """
        longest = settings.longest(config)
        tokenizer = Tokenizer.open(storage, settings.tokenizer)
        shapes = Shapes(settings.tokens, number_of(config, PLACES))
        length = shapes.length(longest)
        vocabulary = number_of(config, VOCABULARY) or tokenizer.size
        rows = shapes.rows(length)
        if engine_of is None:
            assert settings.engine != "swarm"
            engine = open_engine(
                storage,
                settings.model,
                settings.engine,
                settings.dtype_name(config),
                rows=rows,
                length=length,
                beside_bytes=bytes_beside(rows, length, vocabulary, number_of(config, HIDDEN) or 0),
                blocks=blocks,
                one_request=one_request,
            )
        else:
            engine = engine_of(shapes.largest(longest))
        pieces = Pieces(longest, settings.on_long, settings.step_of_windows(longest))
        return cls(engine, tokenizer, settings, pieces, shapes, vocabulary)

    def scores(self, prefix: str, *, per_token: bool) -> Scores:
        """Work that scores documents."""
        marks = self._marks(f"{prefix}scored_by")
        return Scores(self.engine.ends, self.engine.total_blocks, self.vocabulary, marks, prefix, per_token)

    def embeddings(self, keys: dict[int, str], origin: str, pool: Pool) -> Embeddings:
        """Work that embeds documents; `keys` is the layer -> the key of its states."""
        return Embeddings(self.engine.ends, self.engine.total_blocks, self._marks(origin), keys, pool)

    def _marks(self, origin: str) -> Marks:
        return Marks(origin, self.made_by, self.settings.on_nonfinite)

    @property
    def made_by(self) -> str:
        """What numbers depend on beside the document, whatever the engine: "3f0c5d1a90b2 bfloat16 NVIDIA H200"."""
        return f"{self.engine.source.checkpoint.fingerprint[:FINGERPRINT]} {self.dtype} {self.device}"

    @property
    def dtype(self) -> str:
        return str(self.engine.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """The kinds of devices that the blocks lie on."""
        return self.engine.devices

    def note(self) -> dict[str, str]:
        """What a completion record has of the model."""
        checkpoint = self.engine.source.checkpoint
        return {
            "model": self.settings.model,
            "fingerprint": checkpoint.fingerprint,
            "dtype": self.dtype,
            "device": self.device,
            "engine": self.engine.name,
        }

    def passage(self, work: Work, *, patient: bool = True) -> Passage:
        """Takes documents through the model for this work; one by one unless `patient`."""
        if not patient and isinstance(self.engine, Stream):
            self.engine.window_bytes = 0  # A microbatch at a time.
        return Passage(
            self.engine,
            self.tokenizer,
            work,
            self.pieces,
            self.shapes,
            self.settings.buffer_tokens if patient else 0,
            self.vocabulary,
        )


def limit_threads(cpus: int) -> None:
    """Compute with no more threads than the rank has processors: other ranks may run on those of this machine."""
    torch.set_num_threads(min(torch.get_num_threads(), cpus))
