"""The steps score_blocks and embed_blocks. Imports no torch before their first document: a launch need not have it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from stagger.errors import StaggerError, counted
from stagger.models.config_facts import BLOCKS, PLACES, number_of, read_config
from stagger.models.settings import Dtype, EngineName, OnLong, OnNonfinite, Settings, need_models
from stagger.models.shapes import Shapes
from stagger.models.swarm_choice import OPEN_SWARM, check_size, model_folder, name_of
from stagger.pipeline import Document
from stagger.pipeline.hooks import BoundStep, kept, stateless
from stagger.pipeline.names import resolve
from stagger.pipeline.task_context import TaskContext
from stagger.storage.storage import Storage, absolute

if TYPE_CHECKING:
    from stagger.models.engines import LocalEngine
    from stagger.models.loaded_model import LoadedModel
    from stagger.models.passing import Work

#: Tokens that wait for others of their length: from a million on, a longer wait fills microbatches no better.
BUFFER_TOKENS = 2**20

#: The same for states of each token, which take 2 to 4 bytes for each number of a hidden state.
BUFFER_TOKENS_OF_STATES = 2**17


@dataclass(kw_only=True)
class ModelStep(BoundStep):
    """What both steps share: a model, and how documents pass it.

    Args:
        model: the folder of a decoder of transformers: config.json, *.safetensors, and tokenizer.json. With the engine
            swarm, by default that of the swarm.
        engine: whole keeps all blocks in memory; stream loads one after another; auto decides by the free memory, and
            logs why; swarm sends hidden states through the block servers that the stage uses. The results are the same,
            bit for bit.
        swarm: for the engine swarm: the stage with those servers, if the stage uses several.
        dtype: what the model computes with; auto for that of its config.json.
        tokens: places of a microbatch. A document with more has one of its own.
        max_length: tokens of a document that pass the model together, at most; by default as many as the model has
            positions for.
        on_long: what happens to longer documents. window scores or embeds all their tokens, in windows that overlap;
            truncate leaves out the tokens behind max_length, and counts the documents; fail ends the rank.
        stride: tokens between the starts of two windows; by default half of max_length. Every token behind the first
            window has at least max_length - stride tokens before it.
        tokenizer: a folder with a tokenizer.json, if the model's own has none.
        buffer_tokens: tokens of documents that wait for others of similar length; by default 1,048,576, and 131,072 for
            states of each token. More of them need less padding, and more memory.
        on_nonfinite: whether a result that is infinite or not a number fails the rank, or becomes null and is counted.
    """

    model: str | None = field(default=None, kw_only=False)
    engine: EngineName = "auto"
    dtype: Dtype = "auto"
    tokens: int = 4096
    max_length: int | None = None
    on_long: OnLong = "window"
    stride: int | None = None
    tokenizer: str | None = None
    buffer_tokens: int | None = None
    on_nonfinite: OnNonfinite = "fail"
    swarm: str | None = None
    _used: tuple[str, dict[str, Any]] | None = field(default=None, init=False, repr=False)
    _model_of_swarm: str | None = field(default=None, init=False, repr=False)
    _task: TaskContext | None = field(default=None, init=False, repr=False)
    _loaded: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.model is not None:
            self.model = absolute(os.fspath(self.model))
        elif self.engine != "swarm":
            raise StaggerError("model is missing: give the folder of a model.")
        if self.swarm is not None and self.engine != "swarm":
            raise StaggerError(f"swarm belongs to engine: swarm, and engine is {self.engine}; remove one of them.")
        if self.tokenizer is not None:
            self.tokenizer = absolute(os.fspath(self.tokenizer))
        self.settings()

    @property
    def folder(self) -> str | None:
        """The model's folder; None while it is that of a swarm that is not known yet."""
        return self.model or self._model_of_swarm

    def settings(self) -> Settings:
        """The parameters of this class. Raises StaggerError for one that is out of its range."""
        model = self.folder or ""
        return Settings(
            model,
            self.engine,
            self.dtype,
            self.tokens,
            self.max_length,
            self.on_long,
            self.stride,
            self.tokenizer or model,
            self.waiting_tokens,
            self.on_nonfinite,
        )

    @property
    def waiting_tokens(self) -> int:
        return BUFFER_TOKENS if self.buffer_tokens is None else self.buffer_tokens

    def check_uses(self, uses: Mapping[str, Any]) -> None:
        """Take the model of the swarm that is used."""
        if self.engine == "swarm":
            name = name_of(uses, self.swarm)
            self._model_of_swarm = model_folder(name, uses[name], self.model, self.dtype)
            self._used = name, uses[name].host_options

    def alone(self, uses: Mapping[str, Any]) -> dict[str, Any]:
        """With the engine swarm: the model of the swarm, by an engine of this process. The results are the same."""
        if self.engine != "swarm":
            return {}
        name = name_of(uses, self.swarm)
        folder = model_folder(name, uses[name], self.model, self.dtype)
        dtype = uses[name].host_options.get("dtype", "auto") if self.dtype == "auto" else self.dtype
        return {"engine": "auto", "model": folder, "dtype": dtype, "swarm": None}

    def check_launch(self, storage: Storage) -> None:
        """Check the model's folder, and that the model can be cut into blocks, if torch and transformers are here."""
        from stagger.models.launch_check import check_model

        settings = self.settings()
        config = read_config(storage, settings.model)
        self.blocks_needed(config)
        if self._used is not None:
            longest = settings.longest(config)
            check_size(*self._used, Shapes(self.tokens, number_of(config, PLACES)).largest(longest), longest)
        check_model(storage, settings, config)

    def start_requests(self, storage: Storage) -> int:
        """Those for the model and its tokenizer; none for a model that is not known before the swarm is."""
        from stagger.models.model_requests import start_requests

        return start_requests(storage, self.settings()) if self.folder else 0

    def blocks_needed(self, config: dict[str, Any]) -> int | None:
        """How many blocks are needed of the model with this config.json; None for all. Raises StaggerError when it does
        not have what is wanted.
        """
        return None

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        documents = iter(data)
        first = next(documents, None)
        if first is None:
            return  # A shard without documents needs no model.
        loaded = self._model()
        assert self._task is not None
        passage = loaded.passage(self.work(loaded), patient=not self._task.circumstances.looking)
        yield from passage.run(chain((first,), documents))

    def _model(self) -> LoadedModel:
        """The model, opened for the first rank of a process that needs it."""
        assert self._task is not None
        need_models()
        from stagger.models.loaded_model import LoadedModel, limit_threads

        if not self._task.circumstances.looking:
            limit_threads(self._task.cpus)
        if self._loaded is None:
            opened = self._swarm() if self.engine == "swarm" else None
            settings = self.settings()
            config = read_config(self._task.storage, settings.model)
            blocks = self.blocks_needed(config)
            self._loaded = LoadedModel.open(
                self._task.storage, settings, config, blocks, opened, one_request=self._task.limited
            )
        noted = self._task.notes.setdefault("models", [])
        if (note := self._loaded.note()) not in noted:
            noted.append(note)
        loaded: LoadedModel = self._loaded
        return loaded

    def _swarm(self) -> Callable[[int], LocalEngine]:
        """Opens the swarm that the stage uses, for microbatches of up to that many tokens."""
        assert self._task is not None
        open_swarm = resolve(OPEN_SWARM)
        self._model_of_swarm, opened = open_swarm(
            self._task.storage, self._task.circumstances.uses, self.swarm, self.model, self.dtype
        )
        engine: Callable[[int], LocalEngine] = opened
        return engine

    def work(self, loaded: LoadedModel) -> Work:
        """What the step wants of the model."""
        raise NotImplementedError


@kept("_loaded")
@stateless
@dataclass(kw_only=True)
class ScoreBlocks(ModelStep):
    """Adds to each document's metadata how probable its text is to a language model, and passes the documents on.

    logprob_sum is the sum of the natural logarithms of the probabilities of its tokens, each given those before it;
    logprob_mean is that per token; perplexity is exp(-logprob_mean); tokens is the number of tokens that were scored:
    all but the first. scored_by names the model, by a fingerprint of its files, its dtype and the kind of device. A
    document of fewer than two tokens has the sum 0, and null for mean and perplexity.

    Args:
        per_token: whether logprobs, the log-probability of each scored token, is added too.
        prefix: comes before these names, for instance where a document is scored by several models.
    """

    per_token: bool = False
    prefix: str = ""

    def work(self, loaded: LoadedModel) -> Work:
        return loaded.scores(self.prefix, per_token=self.per_token)


@kept("_loaded")
@stateless
@dataclass(kw_only=True)
class EmbedBlocks(ModelStep):
    """Adds to each document's metadata the hidden states of a language model, in float32, and passes the documents on.

    A document without tokens gets null. Another key, with `_by` at its end, names the model, by a fingerprint of its
    files, its dtype and the kind of device.

    Args:
        layer: whose states, numbered as in transformers' hidden_states: 0 is the embedding, k is behind the first k
            blocks, and -1 is behind all of them and the final norm. Several are given as a list.
        pool: mean of the states of all tokens, the last token's, or none: a list for each token.
        to: the key of the metadata for the states. Those of several layers get their numbers behind it, as in
            embedding_8.
    """

    layer: int | list[int] = -1
    pool: Literal["mean", "last", "none"] = "mean"
    to: str = "embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.to:
            raise StaggerError("to is empty; give the key of the metadata for the states, such as embedding.")
        if self.layer == []:
            raise StaggerError("layer is an empty list; give the numbers of layers, or -1 for the last.")

    @property
    def waiting_tokens(self) -> int:
        if self.buffer_tokens is None and self.pool == "none":
            return BUFFER_TOKENS_OF_STATES
        return super().waiting_tokens

    def blocks_needed(self, config: dict[str, Any]) -> int | None:
        blocks = number_of(config, BLOCKS)
        return None if blocks is None else max(self.keys(blocks))

    def keys(self, blocks: int) -> dict[int, str]:
        """Layer, from 0 on -> the key of its states. Raises StaggerError for one that the model does not have."""
        given = self.layer if isinstance(self.layer, list) else [self.layer]
        for one in given:
            if not -blocks - 1 <= one <= blocks:
                raise StaggerError(
                    f"layer {one}: the model has {counted(blocks, 'block')}, so its layers are 0 (the embedding) to"
                    f" {blocks}, or -1 (the last) to {-blocks - 1}."
                )
        layers = [one % (blocks + 1) for one in given]
        if twice := next((one for one in layers if layers.count(one) > 1), None):
            raise StaggerError(
                f"layer {self.layer} names the layer {twice} twice; the model has {counted(blocks, 'block')}."
            )
        return {one: f"{self.to}_{one}" if isinstance(self.layer, list) else self.to for one in layers}

    def work(self, loaded: LoadedModel) -> Work:
        return loaded.embeddings(self.keys(loaded.engine.total_blocks), f"{self.to}_by", self.pool)
