"""The one place that uses transformers' loading internals: the skeleton of a model, and tensors to parameters.

transformers renames and merges the tensors of old checkpoints (experts of one layer become one parameter, for example).
Its own conversion is used here, on the tensors of one block at a time. `transformers>=5.12,<6`: the signature of
`convert_and_load_state_dict_in_model` differs within this range.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from stagger.errors import StaggerError
from stagger.models.safetensors_header import TensorPlace

#: Builds of skeletons, one at a time: they replace a method of torch while they last.
BUILDING = threading.Lock()

#: Buffers that old checkpoints have, and that models now compute. transformers ignores them in any model.
OLD_BUFFERS = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")

#: Elements of the largest buffers of most models. To fill a larger tensor with zeros takes time.
LARGEST_BUFFER = 2**22

#: Parameters of `convert_and_load_state_dict_in_model` without defaults in old versions.
OLD_ARGUMENTS = {
    name: None for name in ("tp_plan",) if name in inspect.signature(convert_and_load_state_dict_in_model).parameters
}

logging.disable_progress_bar()


def config_of(content: Mapping[str, Any]) -> Any:
    """transformers' configuration for the content of a config.json. Raises StaggerError if there is no such model."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(content, file)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # Any configuration class may check its values in its own way.
            raise StaggerError(
                f"transformers {transformers.__version__} does not take the config.json of this model_type"
                f" {content.get('model_type')!r}: {first_line(error)}"
            ) from error
    config.use_cache = False
    config.output_hidden_states = False
    config.output_attentions = False
    return config


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def parameters_on_meta(largest_real: float) -> Iterator[None]:
    """Parameters that this thread makes take no memory. Buffers (rotary tables, masks) are real.

    Tensors with more than `largest_real` elements are taken for parameters as soon as they are made.
    """
    mine = threading.get_ident()
    register = nn.Module.register_parameter
    factories = {name: getattr(torch, name) for name in ("empty", "zeros", "ones")}

    def register_on_meta(self: Any, name: str, parameter: Any) -> None:
        register(self, name, parameter)
        if parameter is not None and threading.get_ident() == mine:
            self._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)

    def large_on_meta(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == mine and not kwargs.keys() & {"out", "pin_memory"}:
                on_meta = make(*args, **{**kwargs, "device": "meta"})
                if on_meta.numel() > largest_real:
                    return on_meta
            return make(*args, **kwargs)

        return made

    with BUILDING:
        nn.Module.register_parameter = register_on_meta
        for name, make in factories.items():
            setattr(torch, name, large_on_meta(make))
        try:
            yield
        finally:
            nn.Module.register_parameter = register
            for name, make in factories.items():
                setattr(torch, name, make)


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """A causal language model without weights: its parameters are on the meta device, in the dtypes that they get.

    Raises StaggerError when transformers has no causal language model for the configuration.
    """
    for largest_real in (LARGEST_BUFFER, math.inf):
        with parameters_on_meta(largest_real):
            model = causal_model(copy.deepcopy(config), dtype)
        if not any(buffer.is_meta for buffer in model.buffers()):
            break
    plan = model._get_dtype_plan(dtype)
    if plan:
        pattern, dtype_of, _ = build_glob_alternation(list(plan))
        for name, part in model.state_dict(keep_vars=True).items():
            if match := pattern.search(name):
                part.data = part.data.to(plan[dtype_of[match.lastgroup]])
    return model


def causal_model(config: Any, dtype: torch.dtype) -> Any:
    """A causal language model with random weights. Raises StaggerError when transformers has none for `config`."""
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # Models and their parts check the configuration in their own ways.
        raise StaggerError(
            f"transformers {transformers.__version__} cannot make a causal language model of the model_type"
            f" {config.model_type!r}: {first_line(error)}"
        ) from error
    return model.eval()


class Conversion:
    """Turns a checkpoint's tensors into parameters of a model, with transformers' own rules.

    target: the parameter (or buffer) that each tensor becomes, or becomes a part of (the first one, if it is split);
        None for those that no parameter takes.
    made: the parameters that all tensors together make.
    """

    def __init__(self, model: Any, dtype: torch.dtype, tensors: Mapping[str, TensorPlace]) -> None:
        self._model = model
        self._dtype = dtype
        self._tensors = tensors
        self._mapping = get_model_conversion_mapping(model)
        self._converting = threading.Lock()
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        self._state = state = model.state_dict()
        prefix = model.base_model_prefix
        patterns = {pattern: one for one in converters for pattern in one.source_patterns}
        self.target: dict[str, str | None] = {}
        self.made: set[str] = set()
        self._converted: set[str] = set()
        alone: dict[str, str] = {}
        for name in sorted(tensors, key=dot_natural_key):
            renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if renamed not in state and name in state:
                renamed, pattern = rename_source_key(name, [], [], prefix, state)
            self.target[name] = renamed if renamed in state else None
            targets = patterns[pattern].target_patterns if pattern else [renamed]
            if pattern:
                self._converted.add(name)
            if pattern is None and renamed in state and alone.setdefault(renamed, name) != name:
                raise StaggerError(f"The tensors {alone[renamed]} and {name} both make the parameter {renamed}.")
            self.made |= {renamed.replace(targets[0], one) for one in targets} & state.keys()

    def misfits(self) -> list[str]:
        """What is wrong with the tensors that become parameters as they are, but have another shape."""
        found = []
        for name, parameter in self.target.items():
            if parameter is not None and name not in self._converted:
                shape, expected = self._tensors[name].shape, tuple(self._state[parameter].shape)
                if shape != expected:
                    found.append(
                        f"{name} has the shape {list(shape)} in the checkpoint, and {list(expected)} in the model"
                    )
        return found

    def ignored(self, name: str) -> bool:
        """Whether transformers itself ignores a tensor that no parameter takes, such as a buffer of old versions."""
        patterns = [*(self._model._keys_to_ignore_on_load_unexpected or ()), *OLD_BUFFERS]
        return any(re.search(pattern, name) for pattern in patterns)

    def convert(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters and buffers, by their names in the model, of all the tensors that make them.

        Raises StaggerError for one that does not fit.
        """
        made = {}
        others = {}
        for name, tensor in tensors.items():
            parameter = self._made_alone(name, tensor)
            if parameter is None:
                others[name] = tensor
            else:
                made[parameter] = tensor.to(self._state[parameter].dtype)
        return made | self._convert(others) if others else made

    def _made_alone(self, name: str, tensor: torch.Tensor) -> str | None:
        """The parameter that a tensor becomes as it is, but for its name and dtype; None for any other tensor.

        transformers' way takes 8 ms of CPU for a block: a tenth of what 4096 tokens take in a small one.
        """
        parameter = self.target[name]
        if parameter is None or name in self._converted or tensor.shape != self._state[parameter].shape:
            return None
        return parameter

    def _convert(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What transformers makes of these tensors."""
        with self._converting:
            before = dict(tensors_of(self._model))
            info, _ = convert_and_load_state_dict_in_model(
                self._model,
                dict(tensors),
                LoadStateDictConfig(
                    weight_mapping=copy.deepcopy(self._mapping),
                    dtype=self._dtype,
                    dtype_plan=self._model._get_dtype_plan(self._dtype),
                ),
                **OLD_ARGUMENTS,
            )
            after = dict(tensors_of(self._model))
            made = {name: tensor.detach() for name, tensor in after.items() if tensor is not before[name]}
            for name in made:
                put(self._model, name, before[name])
        for name, found, expected in sorted(info.mismatched_keys):
            raise StaggerError(
                f"{name} has the shape {list(found)} in the checkpoint, and {list(expected)} in the model."
            )
        for name, error in info.conversion_errors.items():
            raise StaggerError(f"The tensors of {name} do not fit together: {str(error).splitlines()[0]}")
        for name in sorted(info.unexpected_keys):
            raise StaggerError(f"The tensor {name} of the checkpoint has no place in the model.")
        return made


def tensors_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a model, with their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def put(model: Any, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the parameter or buffer of this name."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own in module._buffers:
        module._buffers[own] = tensor
    else:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
