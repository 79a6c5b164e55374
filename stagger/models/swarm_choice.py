"""Which swarm the engine `swarm` uses. Imports no torch: a launch need not have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stagger.errors import StaggerError
from stagger.storage.storage import absolute

#: The function that opens a swarm as an engine. Its room lies above this one, so a step finds it by its name.
OPEN_SWARM = "stagger.blocks.serving.swarm_engine:open_swarm"

#: The host whose servers pass hidden states on.
HOST = "transformer"

#: Places of the largest microbatch that its servers take, unless `host_options.tokens` gives another number.
SERVED_TOKENS = 16384


class Swarm(Protocol):
    """What is known of a swarm: `model` is the folder of its model, or of that folder's config.json."""

    @property
    def host(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    @property
    def host_options(self) -> dict[str, Any]: ...


def name_of(uses: Mapping[str, Any], wanted: str | None) -> str:
    """The swarm named `wanted` among those that the stage uses; by default the only one. Raises StaggerError."""
    if not uses:
        raise StaggerError(
            "engine: swarm needs servers: give the run a stage with `blocks`, and this stage `uses: [NAME]`, with its"
            " name (in Python: uses=EXECUTOR)."
        )
    if wanted is None and len(uses) > 1:
        raise StaggerError(f"the stage uses {', '.join(uses)}: choose one, as in swarm: {next(iter(uses))}.")
    if wanted is not None and wanted not in uses:
        raise StaggerError(f"swarm: {wanted!r} is not in `uses` of the stage, which has {', '.join(uses)}.")
    return next(iter(uses)) if wanted is None else wanted


def model_folder(name: str, swarm: Swarm, model: str | None, dtype: str) -> str:
    """The folder of the model that the servers of a swarm have.

    Raises StaggerError when they have none, or another model or dtype than the step gives: None and auto are theirs.
    """
    if swarm.model is None or swarm.host == "simulated":
        raise StaggerError(
            f"the servers of {name} serve no hidden states: set blocks.model, and blocks.host: {HOST}, in that stage."
        )
    folder = absolute(swarm.model).removesuffix("/config.json")
    if model is not None and model != folder:
        raise StaggerError(f"model is {model}, but {name} has {folder}: leave model out, or give the same.")
    theirs = swarm.host_options.get("dtype", "auto")
    if dtype != theirs and "auto" not in (dtype, theirs):
        raise StaggerError(f"dtype is {dtype}, but {name} has {theirs} (host_options): leave it out, or give the same.")
    return folder


def check_size(name: str, options: Mapping[str, Any], places: int, longest: int) -> None:
    """Raise StaggerError when the servers of a swarm, with these `host_options`, take smaller microbatches than a step
    makes: those have up to `places` places, in rows of up to `longest` tokens.
    """
    most = options.get("tokens", SERVED_TOKENS)
    if places > most:
        raise StaggerError(
            f"a microbatch has up to {places:,} tokens, and the servers of {name} take {most:,}: lower `tokens` or"
            f" `max_length` of the step, or raise host_options.tokens of {name}."
        )
    if longest > (options.get("max_length") or longest):
        raise StaggerError(
            f"max_length is {longest:,}, and that of {name} (host_options) is {options['max_length']:,}: give both the"
            " same."
        )
