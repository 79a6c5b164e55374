"""The key `blocks` of a stage: servers that host a model's transformer blocks, in place of a pipeline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from stagger.errors import StaggerError
from stagger.spec.base import Amount, Model
from stagger.spec.block_settings import HEARTBEAT_S, LEASE_S, Rebalance
from stagger.storage.storage import Storage, absolute, join

#: The step that a stage of blocks consists of.
HOST_STEP = "stagger.blocks.step:HostBlocks"

#: Where a model's config.json says how many blocks it has: the names in use on the Hugging Face Hub.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


class BlocksSpec(Model):
    """Servers that host a model's transformer blocks."""

    total: PositiveInt | None = None
    """How many blocks the model has; or name the `model`."""
    model: str | None = None
    """The model's folder, or its config.json, which says how many blocks it has. The host gets it too."""
    servers: PositiveInt
    """How many servers: one a rank, each a job of its own."""
    num_blocks: Literal["auto"] | PositiveInt = "auto"
    """How many blocks a server hosts; `auto`: as many as the host says fit."""
    host: Annotated[str, Field(pattern=r"^(simulated|[A-Za-z_][\w.]*:[\w.]+)$")] = "simulated"
    """What loads and serves blocks: `simulated`, or a class of yours as `module:Class`."""
    host_options: dict[str, Any] = {}
    """Its parameters."""
    rebalance: Rebalance = "planner"
    """How servers decide who moves: by local search for all of them (`planner`), each for its own gain (`own_gain`), by
    Petals' rule (`full`), or nobody (`none`)."""
    balance_quality: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.99
    """For `full`: move when the slowest block is below this share of what it would be."""
    mean_balance_check_period: Literal["auto"] | Amount = "auto"
    """Seconds between a server's checks of the balance, on average: each after U(0, twice that). `auto`: 120; with
    `planner` 30 times the number of servers, since each plans for all."""
    mean_block_selection_delay: NonNegativeFloat = 5.0
    """Seconds before a new server chooses its blocks, on average: U(0, twice that)."""
    heartbeat: Amount = HEARTBEAT_S
    """Seconds between a server's heartbeats, on average."""
    lease: Amount = LEASE_S
    """Seconds without a heartbeat after which a server counts as gone."""
    measure_timeout: Amount = 300.0
    """Seconds that measuring a host's throughput may take."""
    drain: NonNegativeFloat = 30.0
    """Seconds that a server has to finish what it serves when it leaves."""
    serve_for: Amount | None = None
    """Seconds after which a server leaves; by default when its job's time is up, or it is told to."""

    @model_validator(mode="after")
    def _consistent(self) -> BlocksSpec:
        if self.total is None and self.model is None:
            raise ValueError("say how many blocks there are: `total`, or the `model` whose config.json says it")
        if self.total is not None and self.num_blocks != "auto" and self.num_blocks > self.total:
            raise ValueError(f"num_blocks is {self.num_blocks}, but the model has {self.total} blocks")
        if self.lease <= 2 * self.heartbeat:
            raise ValueError(
                f"lease is {self.lease:g} s: it must be more than two heartbeats ({self.heartbeat:g} s each), or who is"
                " there counts as gone"
            )
        return self


def with_total(blocks: BlocksSpec, storage: Storage) -> BlocksSpec:
    """The same, with the number of blocks that the model's config.json says. Raises StaggerError when it says none, or
    another than `total`.
    """
    if blocks.model is None:
        return blocks
    model = absolute(blocks.model)
    path = model if model.endswith(".json") else join(model, "config.json")
    try:
        config = orjson.loads(storage.read(path))
    except OSError as error:
        raise StaggerError(f"{path} cannot be read ({error}); give a model's folder, or `total`.") from None
    except orjson.JSONDecodeError as error:
        raise StaggerError(f"{path} is damaged ({error}).") from None
    total = depth(config)
    if total is None:
        raise StaggerError(f"{path} has none of {', '.join(DEPTH_KEYS)}; say `total` instead.")
    if blocks.total not in (None, total):
        raise StaggerError(f"{path} says {total}, but total is {blocks.total}; leave `total` out.")
    return BlocksSpec.model_validate({**blocks.model_dump(), "total": total, "model": model})


def depth(config: Any) -> int | None:
    """How many transformer blocks a config.json tells of; None when it does not.

    >>> depth({"num_hidden_layers": 80}), depth({"text_config": {"num_hidden_layers": 32}}), depth({"hidden_size": 8})
    (80, 32, None)
    """
    for part in (config, config.get("text_config") if isinstance(config, dict) else None):
        for key in DEPTH_KEYS:
            if isinstance(part, dict) and isinstance(part.get(key), int) and part[key] > 0:
                return int(part[key])
    return None
