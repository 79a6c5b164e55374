"""Whether an architecture can be cut: a small model of it is passed block by block, and as a whole."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
import transformers

from stagger.errors import StaggerError
from stagger.models.cut import Cut, find_blocks
from stagger.models.small_config import blocks_of_all_kinds, few_blocks, kinds_of_blocks, small
from stagger.models.transformers_loading import causal_model, first_line, skeleton

#: Lengths of the texts that the small model is tried with, in tokens.
LENGTHS = (24, 17, 5)

#: A model that cannot be made narrow is tried in its full width if its few blocks take at most this many bytes. Twice
#: as many are needed.
MOST_BYTES = 2**30

#: The least change of earlier logits, as a share of the last one's, that is not rounding: it is about 5e-3 in
#: encoders of transformers, and 0 in decoders.
CHANGED = 1e-4

#: What blocks return, by configuration and dtype: what has been checked in this process.
_values: dict[tuple[str, str, torch.dtype], int] = {}


def checked(config: Any, dtype: torch.dtype) -> int:
    """What each block of a model returns: 0 for a tensor, else the length of its tuple.

    A small model of the architecture with random weights is passed as a whole, and block by block: its logits must be
    equal, bit for bit, with texts of several lengths in one batch. Takes about a second, and memory for a small model.

    Raises StaggerError when they differ, when the model is not causal, or when no small model can be made.
    """
    key = (type(config).__name__, json.dumps(config.to_dict(), sort_keys=True, default=repr), dtype)
    if key not in _values:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            _values[key] = compare(small_whole(config, dtype))
    return _values[key]


class Whole:
    """A small model, what it makes of some texts, and what its blocks return."""

    def __init__(self, model: Any) -> None:
        for parameter in model.parameters():
            if parameter.is_floating_point():  # Initial values of 0 and 1 would hide mistakes.
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.model = model
        self.mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
        self.tokens = torch.randint(3, model.config.get_text_config().vocab_size, self.mask.shape) * self.mask
        self.values: set[int] = set()
        observed = copy.deepcopy(model)
        for block in find_blocks(observed)[1]:
            block.register_forward_hook(self._note)
        self.logits = observed(input_ids=self.tokens, attention_mask=self.mask, use_cache=False).logits

    def _note(self, block: Any, args: Any, output: Any) -> None:
        self.values.add(len(output) if isinstance(output, tuple) else 0)


def small_whole(config: Any, dtype: torch.dtype) -> Whole:
    """A small model of the architecture: narrow, or with few blocks of the full width if it cannot be made narrow."""
    real = skeleton(config, dtype)
    blocks = blocks_of_all_kinds(kinds_of_blocks(config, find_blocks(real)[1]))
    try:
        return Whole(causal_model(small(config, blocks), dtype))
    except Exception as error:  # Its parts may fit together in one width only.
        narrow_error = error
    try:
        wide = few_blocks(config, blocks)
        size = sum(parameter.numel() * parameter.element_size() for parameter in skeleton(wide, dtype).parameters())
        if size <= MOST_BYTES:
            return Whole(causal_model(wide, dtype))
    except Exception as error:
        narrow_error = error
    raise StaggerError(
        f"{type(real).__name__} (transformers {transformers.__version__}) cannot be checked, since no small model of it"
        f" can be made: {first_line(narrow_error)}"
    )


def compare(whole: Whole) -> int:
    """What blocks return. Raises StaggerError when the model cannot be cut."""
    name = f"{type(whole.model).__name__} (transformers {transformers.__version__})"
    if len(whole.values) != 1:
        raise StaggerError(
            f"{name} cannot be cut: its blocks return tuples of several lengths: {sorted(whole.values)}."
        )
    (values,) = whole.values
    try:
        logits = block_by_block(whole, values)
    except Exception as error:  # Whatever a model does that is not made to be cut.
        raise StaggerError(f"{name} cannot be cut: passed block by block, it fails: {first_line(error)}") from error
    tokens = whole.mask.bool()
    if not torch.equal(logits[tokens], whole.logits[tokens]):
        most = (logits - whole.logits)[tokens].abs().max()
        raise StaggerError(
            f"{name} cannot be cut: a small model of it, passed block by block, gives logits that differ from the whole"
            f" model's by up to {most:.2g}. Its blocks must share something beside the hidden state."
        )
    if sees_later_tokens(whole):
        raise StaggerError(
            f"{name} is not causal: its logits depend on later tokens, so they do not predict the next one."
            " Use a decoder."
        )
    return values


def sees_later_tokens(whole: Whole) -> bool:
    """Whether another last token changes logits ahead of it. In float32, where rounding cannot look like a change."""
    model = causal_model(copy.deepcopy(whole.model.config), torch.float32)
    tokens = whole.tokens[:1]
    other = tokens.clone()
    other[0, -1] = 3 + (tokens[0, -1] - 2) % (model.config.get_text_config().vocab_size - 3)
    one, two = (model(input_ids=given, use_cache=False).logits for given in (tokens, other))
    changed = (one - two).abs().amax(-1)[0]
    return bool(changed[:-1].max() > CHANGED * changed[-1])


def block_by_block(whole: Whole, values: int) -> torch.Tensor:
    """The logits of the small model. Each block is passed in a new copy of it, which knows nothing of the others."""

    def new() -> Cut:
        return Cut(copy.deepcopy(whole.model), values)

    hidden = new().embed(whole.tokens, whole.mask)
    expected = (*whole.mask.shape, whole.model.config.get_text_config().hidden_size)
    for number in range(len(find_blocks(whole.model)[1])):
        if hidden.shape != expected:
            raise ValueError(f"its hidden state has the shape {list(hidden.shape)} and not {list(expected)}")
        hidden = new().run(hidden, whole.mask, range(number, number + 1))
    return new().logits(hidden)
