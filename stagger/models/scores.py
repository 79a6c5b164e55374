"""What score_blocks and embed_blocks add to documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from stagger.errors import StaggerError
from stagger.models.batches import Piece
from stagger.models.engine import Ends
from stagger.models.microbatch import Microbatch
from stagger.models.results import Pool, pooled, token_logprobs
from stagger.models.settings import OnNonfinite
from stagger.pipeline import Document, count


@dataclass
class Marks:
    """What both steps share: they put values into the metadata, and never over what is there.

    origin: the key of `made_by`, the model, dtype and device that the values come from.
    """

    origin: str
    made_by: str
    on_nonfinite: OnNonfinite

    def put(self, document: Document, values: dict[str, Any]) -> None:
        """Add values, and where they come from. Raises StaggerError when the document has one of the keys already."""
        for key in (*values, self.origin):
            if key in document.metadata:
                raise StaggerError(
                    f"The metadata of the document {document.id!r} has the key {key!r} already: give this step another"
                    " name for it (prefix of score_blocks, to of embed_blocks)."
                )
        document.metadata |= {**values, self.origin: self.made_by}

    def nonfinite(self, document: Document, what: str) -> None:
        """Count a document whose values are infinite or not numbers. Raises StaggerError unless they may be."""
        if self.on_nonfinite == "fail":
            raise StaggerError(
                f"The model made of the document {document.id!r} {what}. {self._advice} If other documents succeed,"
                " on_nonfinite: count gives this one null values."
            )
        count("nonfinite")

    @property
    def _advice(self) -> str:
        if "float16" in self.made_by.split():
            return "float16 overflows in many models: use dtype bfloat16 or float32."
        return "If it happens to every document, the weights hold numbers that are not finite: copy the model again."


@dataclass
class Scores:
    """The log-probability of each token given those before it in its document (or window)."""

    ends: Ends
    total_blocks: int
    vocabulary: int
    marks: Marks
    prefix: str
    per_token: bool

    #: The first token has none before it.
    fewest = 2

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.total_blocks,)

    def kept(self, batch: Microbatch, layer: int, hidden: torch.Tensor, pieces: Sequence[Piece]) -> list[Any]:
        """The log-probabilities of the tokens of each piece that no earlier one scores: float32 [tokens]."""
        found = token_logprobs(self.ends, batch, hidden, self.vocabulary).numpy()
        return [
            found[row, max(piece.new - piece.begin, 1) - 1 : piece.end - piece.begin - 1].copy()
            for row, piece in enumerate(pieces)
        ]

    def put(self, document: Document, tokens: int, found: Sequence[dict[int, Any]]) -> None:
        scored = numpy.concatenate([one[self.total_blocks] for one in found]) if found else numpy.zeros(0, "float32")
        total = float(scored.sum(dtype="float64"))
        values: dict[str, Any] = {"logprob_sum": total, "logprob_mean": None, "perplexity": None}
        if len(scored):
            values |= {"logprob_mean": total / len(scored), "perplexity": exponential(-total / len(scored))}
            count("scored_tokens", len(scored))
        else:
            count("without_tokens")
        values["tokens"] = len(scored)
        if self.per_token:
            values["logprobs"] = scored
        if not all(value is None or math.isfinite(value) for value in (total, values["perplexity"])):
            self.marks.nonfinite(document, f"a sum of log-probabilities of {total} over {len(scored)} tokens")
            values = {key: value if key == "tokens" else None for key, value in values.items()}
        self.marks.put(document, {f"{self.prefix}{key}": value for key, value in values.items()})


def exponential(number: float) -> float:
    """e to the power of a number; infinite if that is beyond the range of 64-bit floats."""
    try:
        return math.exp(number)
    except OverflowError:
        return math.inf


@dataclass
class Embeddings:
    """Hidden states of blocks, pooled or of each token.

    keys: the layer -> the key of its states.
    """

    ends: Ends
    total_blocks: int
    marks: Marks
    keys: dict[int, str]
    pool: Pool

    fewest = 1

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.keys)

    def kept(self, batch: Microbatch, layer: int, hidden: torch.Tensor, pieces: Sequence[Piece]) -> list[Any]:
        """The pooled states of each piece. Those of the last block are behind the final norm."""
        return pooled(self.ends.normed(hidden) if layer == self.total_blocks else hidden, pieces, self.pool)

    def put(self, document: Document, tokens: int, found: Sequence[dict[int, Any]]) -> None:
        values: dict[str, Any] = dict.fromkeys(self.keys.values())
        if found:
            values = {key: self._joined([one[layer] for one in found], tokens) for layer, key in self.keys.items()}
        else:
            count("without_tokens")
        for key, value in values.items():
            if value is not None and not numpy.isfinite(value).all():
                self.marks.nonfinite(document, f"a hidden state that is not finite ({key})")
                values = dict.fromkeys(self.keys.values())
                break
        self.marks.put(document, values)

    def _joined(self, parts: list[torch.Tensor], tokens: int) -> numpy.ndarray[Any, Any]:
        """The states of a document, of those of its pieces, in float32."""
        if self.pool == "mean":
            whole = torch.stack(parts).sum(0) / tokens
        else:
            whole = parts[-1] if self.pool == "last" else torch.cat(parts)
        states: numpy.ndarray[Any, Any] = whole.float().numpy()
        return states
