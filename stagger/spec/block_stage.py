"""Turns a stage with `blocks` into an ordinary one: a rank per server, whose only step hosts blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagger.errors import StaggerError
from stagger.pipeline.objects import as_data
from stagger.spec.blocks import HOST_STEP, BlocksSpec, with_total
from stagger.spec.messages import validated
from stagger.spec.place import Place
from stagger.spec.references import literal
from stagger.spec.yaml_file import Path
from stagger.storage.storage import Storage

#: Keys of the executor that a stage with `blocks` does not take from a profile: each server is a job of its own.
PACKING = ("ranks_per_job", "nodes_per_task", "ranks_at_once", "nodes_per_job")

#: Keys that contradict `blocks`, and why.
REFUSED = {
    "pipeline": "",
    "tasks": ": the number of servers is blocks.servers",
    "bytes_per_task": ": the number of servers is blocks.servers",
}


def of_blocks(
    stage: Mapping[str, Any], own: Mapping[str, Any], place: Place, path: Path, storage: Storage | None
) -> dict[str, Any]:
    """The fields of a stage that hosts blocks. `own` holds its keys without defaults. The number of blocks is read from
    the model in `storage`; without a storage, it stays unknown unless it is given.

    Raises StaggerError when a key is wrong, or the model's number of blocks cannot be read.
    """
    for key, why in REFUSED.items():
        if key in own:
            raise StaggerError(f"{place.of((*path, key))}: not allowed with `blocks`{why}; leave it out.")
    checked: BlocksSpec = validated(BlocksSpec, stage["blocks"], place, (*path, "blocks"))
    try:
        blocks = (checked if storage is None else with_total(checked, storage)).model_dump(mode="json")
    except StaggerError as error:
        raise StaggerError(f"{place.of((*path, 'blocks', 'model'))}: {error}") from None
    executor = stage["executor"]
    if isinstance(executor, dict) and executor.get("type") == "local":
        executor = {"workers": checked.servers, **executor}
    settings = {**as_data(blocks), "model": literal(blocks["model"])}
    step = {"use": HOST_STEP, "params": {"settings": settings}}
    others = {key: value for key, value in stage.items() if key != "bytes_per_task"}
    return {**others, "executor": executor, "blocks": blocks, "pipeline": [step], "tasks": checked.servers}


def without_packing(executor: Any, written: Any) -> Any:
    """The settings of the executor of block servers, without those of the profile that put several ranks into a job, or
    one on several nodes.
    """
    if not isinstance(executor, dict):
        return executor
    own = written if isinstance(written, dict) else {}
    return {key: value for key, value in executor.items() if key in own or key not in PACKING}
