"""The step that a stage of blocks consists of: each rank is a server, from its start to its end."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from stagger.blocks.host import HostContext
from stagger.errors import StaggerError, missing_extra
from stagger.pipeline.chain import resolve
from stagger.pipeline.task_context import TaskContext
from stagger.slurm.own_job import job_state
from stagger.spec.block_settings import BlockSettings
from stagger.storage.storage import Storage, join
from stagger.task.attempt_log import log

#: What a host must have.
METHODS = ("room", "measure", "load", "unload", "serve")


def registry_folder(stage_dir: str) -> str:
    """Where the servers of a stage find one another."""
    return join(stage_dir, "registry")


def clear_registry(storage: Storage, stage_dir: str) -> None:
    """Remove what servers left behind that were killed: only when none runs any more."""
    folder = registry_folder(stage_dir)
    for entry in storage.list(folder):
        storage.remove(join(folder, entry.name))


class HostBlocks:
    """Hosts blocks until the job's time is up. Made from the key `blocks` of a stage, never written by hand.

    Args:
        settings: that key, checked, with the number of blocks.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = BlockSettings(**settings)

    def check_tasks(self, tasks: int) -> None:
        """At launch: the host can be had, takes its options, and what deciding needs is installed."""
        try:
            import numpy  # noqa: F401
        except ImportError as error:
            raise missing_extra("blocks", "numpy", error) from error
        target = host_class(self.settings.host)
        try:
            inspect.signature(target).bind(None, **self.settings.host_options)
        except TypeError as error:
            raise StaggerError(f"blocks.host_options: {self.settings.host} does not take them: {error}.") from None

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def __call__(self, data: Iterator[Any], rank: int, world_size: int) -> Iterator[Any]:
        from stagger.blocks.server.block_server import BlockServer, Identity
        from stagger.blocks.server.records import server_id
        from stagger.blocks.server.registry import Registry

        place, settings = self._task.circumstances, self.settings
        identity = Identity(server_id(rank, place.attempt), place.job, job_ends(place.job))
        folder = registry_folder(place.stage_dir)
        registry = Registry(
            self._task.storage,
            folder,
            settings.total,
            identity.server_id,
            lease_s=settings.lease,
            tell=partial(log, level="WARNING"),
        )
        context = HostContext(settings.total, settings.model, rank, lambda: place.stop.signal is not None)
        host = host_class(settings.host)(context, **settings.host_options)
        server = BlockServer(settings, host, registry, identity, place.stop)
        try:
            server.run()
        finally:
            self._task.notes.update(server.notes())
        yield from ()


def job_ends(job: str) -> float | None:
    """When this job's time is up, in seconds since the epoch; None where there is no limit, or no Slurm job.

    Slurm tells it since 23.02 (SLURM_JOB_END_TIME); before that it has to be asked.
    """
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if told.isdecimal() or "SLURM_JOB_ID" not in os.environ:
        return float(told) if told.isdecimal() else None
    try:
        _, left_s = job_state(job)
    except StaggerError as error:
        log(f"when this job's time is up is not known: {error}", "WARNING")
        return None
    return None if left_s is None else time.time() + left_s


def host_class(name: str) -> Any:
    """The class of a host. Raises StaggerError for a name that is none, or a class that lacks something."""
    if name == "simulated":
        from stagger.blocks.server.simulated_host import SimulatedHost

        return SimulatedHost
    found = resolve(name)
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise StaggerError(
            f"{name} is no host for blocks: it has no {', '.join(missing)} (see stagger.blocks.host.Host)."
        )
    return found
