"""The key `blocks` of a stage: servers that host a model's transformer blocks, in place of a pipeline."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import orjson
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from stagger.errors import StaggerError, counted
from stagger.spec.base import Amount, Model, Says
from stagger.spec.block_settings import HEARTBEAT_S, LEASE_S, Rebalance
from stagger.spec.model_advice import advice
from stagger.storage.storage import Storage, absolute, join

#: The only step of a stage with `blocks`.
HOST_STEP = "stagger.blocks.step:HostBlocks"

#: Keys of config.json that hold a model's number of blocks, as used on the Hugging Face Hub.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


class BlocksSpec(Model):
    """Servers that host a model's transformer blocks."""

    example: ClassVar[dict[str, Any]] = {"model": "FOLDER", "servers": 8}

    total: PositiveInt | None = None
    """Number of blocks of the model; by default read from `model`."""
    model: str | None = None
    """The model's folder or its config.json, from which the number of blocks is read. Also passed to the host."""
    servers: PositiveInt
    """Number of servers. Each server is one rank, in its own job."""
    num_blocks: Literal["auto"] | PositiveInt = "auto"
    """Blocks per server; `auto`: as many as its host's `room` returns."""
    host: Annotated[
        str,
        Field(pattern=r"^(simulated|transformer|[A-Za-z_][\w.]*:[\w.<>]+)$"),
        Says(
            "`transformer`, `simulated`, or your own class as module:Class",
            "my_host:Host",
            ("transformer", "simulated"),
        ),
    ] = "simulated"
    """The class that loads and serves blocks: `transformer`, `simulated`, or your own as `module:Class`; in Python also
    the class itself."""
    host_options: dict[str, Any] = {}
    """Parameters of the host."""
    rebalance: Rebalance = "planner"
    """The rule for moving servers. `planner`: a local search moves several servers at once when that pays; `own_gain`:
    a server moves for its own gain; `full`: Petals' rule; `none`: no moves."""
    balance_quality: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.99
    """For `full`: move if the slowest block is below this share of its possible throughput."""
    mean_balance_check_period: Literal["auto"] | Amount = "auto"
    """Mean seconds between a server's checks of the balance; each waits U(0, twice the mean). `auto`: 120; with
    `planner` 30 times the number of servers, since each check plans for all."""
    mean_block_selection_delay: NonNegativeFloat = 5.0
    """Mean seconds before a new server claims its blocks; it waits U(0, twice the mean)."""
    loading_slots: Literal["auto"] | PositiveInt = "auto"
    """Servers that load at the same time, in the order of their claims. `auto`: first those that bring blocks that
    nobody serves, then as many as have the blocks of one copy of the model, or of all that are served."""
    heartbeat: Amount = HEARTBEAT_S
    """Mean seconds between a server's heartbeats."""
    lease: Amount = LEASE_S
    """Seconds without a heartbeat after which a server counts as gone."""
    measure_timeout: Amount = 300.0
    """Seconds that measuring a host's throughput may take."""
    drain: NonNegativeFloat = 30.0
    """Seconds that a leaving server has to finish requests in flight."""
    serve_for: Amount | None = None
    """Seconds, from the first server's start on, after which the servers leave; by default each stays until its job's
    time is up or a signal stops it, and those of a swarm with users until these are done."""

    patience: Amount | None = None
    """Seconds for which stages that use the swarm wait for blocks without a server, before their ranks fail and can be
    retried; by default 1800 if no job of the swarm is queued or running, and else without end."""

    @model_validator(mode="after")
    def _consistent(self) -> BlocksSpec:
        if self.total is None and self.model is None:
            raise ValueError("the number of blocks is missing: set `total`, or `model` to read it from config.json")
        if self.total is not None and self.num_blocks != "auto" and self.num_blocks > self.total:
            raise ValueError(f"num_blocks is {self.num_blocks}, but the model has {counted(self.total, 'block')}")
        if self.lease <= 2 * self.heartbeat:
            raise ValueError(
                f"lease is {self.lease:g} s, but it must be longer than two heartbeats ({self.heartbeat:g} s each):"
                " otherwise live servers count as gone"
            )
        return self


def too_few(blocks: BlocksSpec) -> str:
    """Why these servers can never serve all blocks of their model, as a clause; empty if they may."""
    if blocks.total is None or blocks.num_blocks == "auto" or blocks.servers * blocks.num_blocks >= blocks.total:
        return ""
    return (
        f"whose {counted(blocks.servers, 'server')} with num_blocks: {blocks.num_blocks} each never serve all"
        f" {counted(blocks.total, 'block')} of the model: raise servers to {-(-blocks.total // blocks.num_blocks)}, or"
        " num_blocks"
    )


def with_total(blocks: BlocksSpec, storage: Storage) -> BlocksSpec:
    """Fill in `total` from the model's config.json. Raises StaggerError when the file cannot be read, has no number of
    blocks, or contradicts `total`.
    """
    if blocks.model is None:
        return blocks
    model = absolute(blocks.model)
    path = model if model.endswith(".json") else join(model, "config.json")
    try:
        config = orjson.loads(storage.read(path))
    except (FileNotFoundError, NotADirectoryError):
        folder = path.removesuffix("/config.json")
        raise StaggerError(f"{folder}: there is no config.json. {advice(folder)}") from None
    except OSError as error:
        raise StaggerError(f"{path} cannot be read ({error}); name a model's folder, or set `total`.") from None
    except orjson.JSONDecodeError as error:
        raise StaggerError(f"{path} is damaged ({error}).") from None
    total = depth(config)
    if total is None:
        raise StaggerError(f"{path} has none of {', '.join(DEPTH_KEYS)}; set `total` instead.")
    if blocks.total not in (None, total):
        raise StaggerError(
            f"total is {blocks.total}, but the model in {path} has {counted(total, 'block')}; leave `total` out."
        )
    if blocks.num_blocks != "auto" and blocks.num_blocks > total:
        raise StaggerError(f"num_blocks is {blocks.num_blocks}, but the model in {path} has {counted(total, 'block')}.")
    return blocks.model_copy(update={"total": total, "model": model})


def depth(config: Any) -> int | None:
    """The number of transformer blocks in a config.json; None when it has none of DEPTH_KEYS.

    >>> depth({"num_hidden_layers": 80}), depth({"text_config": {"num_hidden_layers": 32}}), depth({"hidden_size": 8})
    (80, 32, None)
    """
    for part in (config, config.get("text_config") if isinstance(config, dict) else None):
        for key in DEPTH_KEYS:
            if isinstance(part, dict) and isinstance(part.get(key), int) and part[key] > 0:
                return int(part[key])
    return None
