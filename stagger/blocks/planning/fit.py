"""Whether the servers of a stage can hold their model, as far as a launch can know it."""

from __future__ import annotations

import os

from rich.filesize import decimal

from stagger.blocks.planning.gpus import parse_gpus
from stagger.blocks.planning.model_size import ModelSize, read_model
from stagger.blocks.planning.requested import gpus_of, has_gpus, memory_of
from stagger.errors import StaggerError, counted
from stagger.slurm.job_memory import MIB, limit_mib
from stagger.spec.blocks import BlocksSpec
from stagger.spec.models import StageSpec
from stagger.storage.storage import Storage

#: The device that a machine with a driver of NVIDIA has.
GPU_DEVICE = "/dev/nvidiactl"


def check_fit(storage: Storage, stage: StageSpec) -> None:
    """Raise StaggerError when the servers of a stage with the host `transformer` have less memory than its model.

    Compares weights alone, so what passes may still be too large: servers find that out when they start. A model whose
    files cannot be measured passes too.
    """
    blocks = stage.blocks
    if blocks is None or blocks.host != "transformer" or blocks.model is None:
        return
    try:
        size = read_model(storage, blocks.model, dtype=blocks.host_options.get("dtype"), tokens=1)
    except StaggerError:
        return
    if size.estimated:
        return
    if stage.executor.type == "local":
        check_machine(stage.name, size)
    else:
        check_jobs(stage, blocks, size)


def check_machine(name: str, size: ModelSize) -> None:
    """Raise StaggerError when the model does not fit into this machine, which has no GPU."""
    memory = limit_mib(os.environ, requested=False) * MIB
    weights = sum(size.block_bytes)
    if weights > memory and not os.path.exists(GPU_DEVICE):
        raise StaggerError(
            f"{name}: the blocks of {size.path} take {decimal(weights)}, and this machine has {decimal(memory)} of"
            " memory for all servers: use a smaller model, or a cluster."
        )


def check_jobs(stage: StageSpec, blocks: BlocksSpec, size: ModelSize) -> None:
    """Raise StaggerError when a block, or the model, does not fit into what the jobs of the servers request."""
    host_gb = memory_of(stage)
    if host_gb is not None and size.largest > host_gb * 1e9:
        raise StaggerError(
            f"{stage.name}: a block of {size.path} takes {decimal(size.largest)}, and a server requests"
            f" {decimal(int(host_gb * 1e9))} of memory: raise executor.mem_per_cpu_gb, or cpus_per_task."
        )
    gpus = parse_gpus(gpus_of(stage, 1)) if gpus_of(stage, 1) else []
    room_gb = sum(one.memory_gb * one.count for one in gpus) if gpus else None if has_gpus(stage) else host_gb
    if room_gb is None:
        return
    room = f"{decimal(int(room_gb * 1e9))} of {f'GPU memory ({gpus[0].label})' if gpus else 'memory'}"
    fit = int(room_gb * 1e9 // size.largest)
    if not fit:
        raise StaggerError(
            f"{stage.name}: a block of {size.path} takes {decimal(size.largest)}, and a server has {room}:"
            " request more."
        )
    if fit * blocks.servers < size.total_blocks:
        raise StaggerError(
            f"{stage.name}: {counted(blocks.servers, 'server')} with {room} each cannot hold the"
            f" {counted(size.total_blocks, 'block')} of {size.path}, {decimal(size.largest)} each: raise blocks.servers"
            f" to at least {-(-size.total_blocks // fit)}, or request more memory; stagger blocks plan FILE shows what"
            " fits."
        )
    if blocks.num_blocks != "auto" and blocks.num_blocks > fit:
        raise StaggerError(
            f"{stage.name}: blocks.num_blocks is {blocks.num_blocks}, but no more than {counted(fit, 'block')} of"
            f" {size.path} fit into {room}: lower it, or leave it out."
        )
