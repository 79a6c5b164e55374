"""A model of transformers, cut into its blocks: any run of them is passed by the model's own forward.

The base model's forward makes masks, positions and rotary tables as always, and calls its blocks one after another.
Blocks before the wanted ones pass on what they get. The first wanted block gets the hidden state that is to be passed
instead; the last one leaves the forward with its output. So nothing here knows any architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stagger.errors import StaggerError, counted


class Left(BaseException):
    """The forward of the model is left from inside of a block. Not an `Exception`, so that no model swallows it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


def find_blocks(model: Any) -> tuple[str, Any]:
    """The name and the list of a model's blocks. Raises StaggerError when they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    outer = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        found = ", ".join(name for name, _ in outer) or "none"
        raise StaggerError(
            f"{type(model).__name__} cannot be cut: it should have one list of {counted(count, 'block')}, and its"
            f" lists of this length are: {found}."
        )
    return outer[0]


class Cut:
    """Passes hidden states through runs of a model's blocks.

    The model is changed: its blocks obey this object from now on. One thread at a time.

    values: what a block returns: 0 for a tensor, else the length of its tuple.
    prefix: the name of the list of blocks in the model.
    """

    def __init__(self, model: Any, values: int) -> None:
        self.model = model
        self.base = model.base_model
        self.prefix, self.blocks = find_blocks(model)
        self._values = values
        self._begin = self._end = 0
        self._entering: torch.Tensor | None = None
        for number, block in enumerate(self.blocks):
            block.forward = self._gate(number, block.forward)

    def _gate(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def gate(*args: Any, **kwargs: Any) -> Any:
            if number == self._end:
                raise Left(hidden_of(args, kwargs))
            if number < self._begin:
                return self._passed(number, hidden_of(args, kwargs))
            if number == self._begin and self._entering is not None:
                args, kwargs = replaced(self._entering, args, kwargs)
            device = device_of(self.blocks[number])
            output = forward(*on_device(args, device), **on_device(kwargs, device))
            if number == self._end - 1:
                raise Left(output[0] if isinstance(output, tuple) else output)
            return output

        return gate

    def _passed(self, number: int, hidden: torch.Tensor) -> Any:
        """What an absent block returns: what it gets, or, as the last one, what enters behind all blocks."""
        if number == len(self.blocks) - 1 and self._entering is not None:
            hidden = self._entering
        return (hidden, *[None] * (self._values - 1)) if self._values else hidden

    def embed(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The hidden state that the first block gets: [rows, length, hidden]."""
        return self._left(0, 0, None, input_ids=tokens, attention_mask=mask)

    def run(self, hidden: torch.Tensor, mask: torch.Tensor, blocks: range) -> torch.Tensor:
        """The output of the last of `blocks` for the input `hidden` of the first: both [rows, length, hidden].

        mask: int64 [rows, length], 1 for a token.
        """
        if not blocks:
            return hidden
        return self._left(blocks.start, blocks.stop, hidden, **self._instead_of_tokens(hidden, mask))

    def _instead_of_tokens(self, hidden: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of the model for which no embedding is needed. Their values do not matter."""
        width = self.model.get_input_embeddings().weight.shape[-1]
        embeddings = hidden.new_zeros((*hidden.shape[:2], width), device=mask.device)
        return {"inputs_embeds": embeddings, "attention_mask": mask}

    def _left(self, begin: int, end: int, entering: torch.Tensor | None, **inputs: Any) -> torch.Tensor:
        try:
            self._forward(self.base, begin, end, entering, **inputs)
        except Left as left:
            return left.hidden
        raise StaggerError(
            f"{type(self.model).__name__} cannot be cut: its forward does not call its blocks one by one."
        )

    def _forward(self, part: Any, begin: int, end: int, entering: torch.Tensor | None, **inputs: Any) -> Any:
        """The forward of the base model or of the whole one, while blocks pass on what they get, and leave it."""
        self._begin, self._end, self._entering = begin, end, entering
        try:
            return part(**inputs, use_cache=False)
        finally:
            self._entering = None

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output behind the final norm."""
        return self._behind(self.base, hidden).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, places, hidden] behind the last block, before the final norm -> [rows, places, vocabulary]."""
        return self._behind(self.model, hidden).logits

    def _behind(self, part: Any, hidden: torch.Tensor) -> Any:
        """What `part` of the model makes of the last block's output."""
        count = len(self.blocks)
        ones = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return self._forward(part, count, count, hidden, **self._instead_of_tokens(hidden, ones))


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden state among the arguments of a block."""
    return args[0] if args else kwargs["hidden_states"]


def replaced(hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a block, with another hidden state."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def device_of(block: Any) -> torch.device:
    return next(block.parameters()).device


def on_device(value: Any, device: torch.device) -> Any:
    """A value with all of its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(on_device(one, device) for one in value)
    if type(value) is dict:
        return {key: on_device(one, device) for key, one in value.items()}
    return value
