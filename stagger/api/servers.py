"""`blocks` of an executor: as a pipeline file would have it, and as the step of its servers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from stagger.blocks.step import HostBlocks
from stagger.errors import StaggerError
from stagger.spec.expected import described
from stagger.spec.models import StageSpec


def described_blocks(blocks: Any) -> Any:
    """`blocks` with the names of what are objects in Python: the host's class, and the model's path.

    Anything but a mapping is returned as it is, for the error about it. Raises StaggerError for a host that is neither
    a class nor a name.
    """
    if not isinstance(blocks, Mapping):
        return blocks
    named = dict(blocks)
    if "host" in named:
        named["host"] = name_of(named["host"])
    if isinstance(model := named.get("model"), os.PathLike):
        named["model"] = os.fspath(model)
    return named


def name_of(host: Any) -> str:
    """The name of a host, as a pipeline file has it."""
    if isinstance(host, str):
        return host
    if isinstance(host, type):
        return f"{host.__module__}:{host.__qualname__}"
    kind = type(host).__name__
    given = f"an object of the class {kind}" if hasattr(host, "load") else described(host)
    raise StaggerError(
        f"blocks: host: expected a class, or its name, such as 'transformer' or 'my_host:Host', not {given}. Each"
        " server makes an object of the class, with the parameters in host_options."
    )


def step_of(stage: StageSpec, blocks: Mapping[str, Any]) -> HostBlocks:
    """The only step of a stage that hosts blocks. `blocks` is what its executor was given: its host may be a class."""
    assert stage.blocks is not None
    host = blocks.get("host")
    return HostBlocks(stage.blocks.model_dump(mode="json"), host if isinstance(host, type) else None)
