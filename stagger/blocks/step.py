"""The only step of a stage with `blocks`: each rank is one server, from its start to its end."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from stagger.blocks.host import HostContext
from stagger.blocks.serving.keys import key_path, remove_client_keys
from stagger.blocks.swarm_place import END, registry_folder
from stagger.blocks.transformer_options import check_options
from stagger.errors import StaggerError, missing_extra
from stagger.models.settings import need_models
from stagger.pipeline.hooks import BoundStep
from stagger.pipeline.names import resolve
from stagger.pipeline.task_context import TaskContext
from stagger.slurm.own_job import job_state
from stagger.spec.block_settings import BlockSettings
from stagger.storage.storage import Storage, is_local, join
from stagger.task.attempt_log import log

#: Name in a pipeline file -> class of a host that ships. Its module is imported when it is used.
HOSTS = {
    "simulated": "stagger.blocks.server.simulated_host:SimulatedHost",
    "transformer": "stagger.blocks.transformer_host:TransformerHost",
}

#: The methods that a host must have.
METHODS = ("room", "measure", "load", "unload", "serve")


def clear_registry(storage: Storage, stage_dir: str, keys: str | None = None, *, has_users: bool = False) -> None:
    """Remove what servers left in the registry, and their clients' key. Call it only when no server runs any more.

    `keys` is the folder of the key, if it does not lie in the stage's. The key of a swarm whose users have not ended
    stays: they hold it, and wait for servers that accept it.

    That the swarm has ended stays on record: a job that starts all the same must not serve nobody for hours.
    """
    folder = registry_folder(stage_dir)
    left = [entry.name for entry in storage.list(folder)]
    for name in left:
        if name != END:
            storage.remove(join(folder, name))
    if not has_users or END in left:
        remove_client_keys(key_path(stage_dir, keys))


class HostBlocks(BoundStep):
    """Hosts blocks until the job's time is up. Made from the key `blocks` of a stage, never written by hand.

    Args:
        settings: fields of BlockSettings: the validated key, with `total` filled in.
        host: the class of the host, in a run of Python objects that was given one; by default that of its name.
    """

    def __init__(self, settings: dict[str, Any], host: type | None = None) -> None:
        self.settings = BlockSettings(**settings)
        self._host = host

    def check_tasks(self, tasks: int) -> None:
        """Check, at launch, that numpy is installed, and that the host can be imported and accepts its options.

        Raises StaggerError otherwise.
        """
        try:
            import numpy  # noqa: F401
        except ImportError as error:
            raise missing_extra("blocks", "numpy", error) from error
        target = self._class()
        try:
            inspect.signature(target).bind(None, **self.settings.host_options)
        except TypeError as error:
            raise StaggerError(f"host_options: {self.settings.host} does not accept them: {error}.") from None
        if self.settings.host == "transformer":
            check_options(self.settings.model, self.settings.host_options)

    def start_requests(self, storage: Storage) -> int:
        """Those that open the model; none for hosts of users, whose requests are not known."""
        model = (self.settings.model or "").removesuffix("/config.json")
        if self.settings.host != "transformer" or is_local(model):
            return 0
        from stagger.models.model_requests import checkpoint_requests

        return checkpoint_requests(storage, model)

    def bind(self, task: TaskContext) -> None:
        self._task = task

    def _class(self) -> Any:
        """The class of the host. Raises StaggerError when it cannot be imported, or lacks a method."""
        name = self.settings.host
        return host_class(name) if self._host is None else checked_host(self._host, name)

    def __call__(self, data: Iterator[Any], rank: int, world_size: int) -> Iterator[Any]:
        from stagger.blocks.server.block_server import BlockServer, Identity
        from stagger.blocks.server.records import server_id
        from stagger.blocks.server.registry import Registry
        from stagger.blocks.server.tending import Order, Tending

        place, settings = self._task.circumstances, self.settings
        has_users = bool(place.users)
        identity = Identity(server_id(rank, place.attempt), place.job, job_ends(place.job), has_users)
        folder = registry_folder(place.stage_dir)
        registry = Registry(
            self._task.storage,
            folder,
            settings.total,
            identity.server_id,
            lease_s=settings.lease,
            tell=partial(log, level="WARNING"),
        )
        context = HostContext(
            settings.total,
            settings.model,
            rank,
            lambda: server.is_told_to_stop(),
            server_id=identity.server_id,
            storage=self._task.storage,
            run_dir=place.run_dir,
            stage_dir=place.stage_dir,
            view=lambda: registry.latest,
            drain_s=settings.drain,
        )
        host = self._class()(context, **settings.host_options)
        tending = None
        if "SLURM_JOB_ID" in os.environ and place.run_dir:
            options = self._task.storage.options
            order = Order(place.run_dir, place.stage, options, identity.server_id)
            tending = Tending(self._task.storage, folder, order, settings.servers, settings.lease, has_users=has_users)
        server = BlockServer(settings, host, registry, identity, place.stop, tending=tending)
        try:
            server.run()
        finally:
            self._task.notes.update(server.notes())
        yield from ()


def job_ends(job: str) -> float | None:
    """When this job's time is up, in seconds since the epoch; None without a limit, or outside Slurm.

    Slurm sets SLURM_JOB_END_TIME since 23.02; for older versions the controller is queried.
    """
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if told.isdecimal() or "SLURM_JOB_ID" not in os.environ:
        return float(told) if told.isdecimal() else None
    try:
        _, left_s = job_state(job)
    except StaggerError as error:
        log(f"the end time of this job is unknown: {error}", "WARNING")
        return None
    return None if left_s is None else time.time() + left_s


def host_class(name: str) -> Any:
    """Import the class of a host. Raises StaggerError when it cannot be imported, or lacks a method."""
    if name == "transformer":
        need_models("zmq")
    try:
        found = resolve(HOSTS.get(name, name))
    except StaggerError as error:
        raise StaggerError(f"host: {error}") from error
    return checked_host(found, name)


def checked_host(found: Any, name: str) -> Any:
    """The class of a host. Raises StaggerError when it lacks a method."""
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing:
        raise StaggerError(
            f"host: {name} is not a block host: it has no {', '.join(missing)} (see stagger.blocks.host.Host)."
        )
    return found
