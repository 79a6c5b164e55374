"""What is kept of the hidden states of a microbatch: log-probabilities of tokens, and pooled states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from stagger.models.batches import Piece
from stagger.models.engine import Ends
from stagger.models.microbatch import Microbatch

#: Logits that are in memory at once: 256 MiB in float32, and as much again while their exponentials are summed.
LOGITS = 2**26

Pool = Literal["mean", "last", "none"]


def token_logprobs(ends: Ends, batch: Microbatch, hidden: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The natural logarithm of the probability of each token but the first, given those before it in its row.

    `hidden` [rows, length, hidden] is the last block's output. Returns float32 [rows, length - 1] on the CPU. Logits
    are computed for some places at once; how many depends on the shape alone.
    """
    rows, length = batch.tokens.shape
    targets = batch.tokens.to(hidden.device).roll(-1, dims=1)
    step = places_at_once(rows, length, vocabulary)
    found = torch.empty((rows, length), dtype=torch.float32, device=hidden.device)
    for begin in range(0, length, step):
        places = slice(begin, begin + step)
        logits = ends.logits(hidden[:, places]).float()
        of_targets = logits.gather(-1, targets[:, places, None].to(logits.device))[..., 0]
        found[:, places] = of_targets - logits.logsumexp(-1)
    return found[:, :-1].cpu()


def places_at_once(rows: int, length: int, vocabulary: int) -> int:
    """Places of each row whose logits are computed at once: a multiple of 8, as kernels on GPUs like it, or fewer.

    >>> places_at_once(1, 4096, 128256), places_at_once(64, 64, 262144), places_at_once(8, 512, 50257)
    (520, 4, 160)
    """
    places = LOGITS // (rows * vocabulary)
    return min(length, max(1, places - places % 8 if places >= 8 else places))


def bytes_beside(rows: int, length: int, vocabulary: int, hidden: int) -> int:
    """Bytes that a microbatch takes beside what its blocks take: logits of some places in the model's dtype and in
    float32, and their exponentials; or its states in float32, twice.
    """
    logits = rows * places_at_once(rows, length, vocabulary) * vocabulary * (4 + 4 + 4)
    return max(logits, rows * length * hidden * (4 + 4))


def pooled(hidden: torch.Tensor, pieces: Sequence[Piece], pool: Pool) -> list[torch.Tensor]:
    """What is kept of the states [rows, length, hidden] of each piece, on the CPU: the sum over its new tokens, float32
    [hidden], for `mean`; the state of its last token [hidden]; or, for `none`, of each new token [tokens, hidden].
    """
    if pool == "mean":
        fillers = [Piece(0, 0, 0)] * (len(hidden) - len(pieces))  # The shape stays what it is.
        spans = [(piece.new - piece.begin, piece.end - piece.begin) for piece in [*pieces, *fillers]]
        first, end = torch.tensor(spans, device=hidden.device)[:, :, None].unbind(1)
        places = torch.arange(hidden.shape[1], device=hidden.device)
        new = (places >= first) & (places < end)
        return list(hidden.float().masked_fill(~new[..., None], 0).sum(1)[: len(pieces)].cpu())
    if pool == "last":
        rows = torch.arange(len(pieces), device=hidden.device)
        last = torch.tensor([piece.end - piece.begin - 1 for piece in pieces], device=hidden.device)
        return list(hidden[rows, last].cpu())
    return [
        hidden[row, piece.new - piece.begin : piece.end - piece.begin].cpu().clone() for row, piece in enumerate(pieces)
    ]
