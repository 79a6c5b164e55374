"""Gives the tasks of a launch the bundle of their modules (stagger/bundle)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from stagger.bundle import REQUEST, bundle_path
from stagger.bundle.cache import bundle_of
from stagger.executor.base import StageLaunch
from stagger.executor.job_script import activate_script
from stagger.pipeline.names import BUILTIN
from stagger.spec.executors import EnvSpec
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import S3_PROTOCOLS, is_local

#: A protocol -> the modules that connect to it. S3 has one more, of its engine.
S3_MODULE, OTHER_MODULE = "stagger.storage.s3.store", "stagger.storage.fsspec_store"


def write_bundle(launch: StageLaunch, settings: str, env: EnvSpec) -> None:
    """Write the bundle beside the settings, or the request for one where only the tasks can run their Python.

    Does nothing when there can be none: tasks then import their modules one by one.
    """
    modules = modules_of(launch.stage.record.spec, launch.stage.spec)
    python = interpreter_here(env)
    content = bundle_of(python, modules) if python else b"\n".join([REQUEST.strip(), *map(str.encode, modules)])
    if content:
        launch.stage.folder.storage.write(bundle_path(settings), content, private=True)


def interpreter_here(env: EnvSpec) -> str | None:
    """The tasks' interpreter, if this machine can run it: a container or a conda environment has to be set up first."""
    if env.container or env.conda:
        return None
    return os.path.join(os.path.dirname(activate_script(env.venv)), "python") if env.venv else sys.executable


def modules_of(run: RunSpec, stage: StageSpec) -> list[str]:
    """The modules of stagger that tasks of this stage import, besides those of every task. None is the user's own."""
    found = [BUILTIN[step.use].partition(":")[0] for step in stage.pipeline if step.use in BUILTIN]
    if any(step.use not in BUILTIN for step in stage.pipeline):
        found += ["stagger.datatrove.patches", "stagger.datatrove.state", "stagger.pipeline.shard_boundaries"]
    if any(step.removed for step in stage.pipeline):
        found += ["stagger.steps.removed", "stagger.datatrove.reasons"]
    written = [value for step in stage.pipeline for value in (step.params, step.removed and step.removed.path)]
    texts = [run.run_dir, *(text for value in written for text in strings(value))]
    for protocol in sorted({text.partition("://")[0] for text in texts if not is_local(text)}):
        if protocol in S3_PROTOCOLS:
            engine = run.storage_options.get(protocol, {}).get("engine", "auto")
            found += [S3_MODULE, f"stagger.storage.s3.{engine}_engine"]
        else:
            found.append(OTHER_MODULE)
    if run.pickled:
        found += ["cloudpickle", "stagger.pipeline.pickled"]
    return sorted(set(found))


def strings(value: Any) -> Iterator[str]:
    """Every text in a step's parameters."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
