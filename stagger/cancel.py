"""Stopping a run."""

from __future__ import annotations

from stagger.executor.base import executor_class
from stagger.launches import read_launches
from stagger.run_folder import RunFolder, RunRecord


def cancel_run(folder: RunFolder, record: RunRecord) -> list[str]:
    """Stop whatever of the run is queued or running; one sentence for each thing that was stopped.

    Later stages first: a stage that ends must not launch the ones behind it.
    """
    stopped: list[str] = []
    for stage in reversed(record.spec.stages):
        stage_folder = folder.stage(record.spec, stage)
        launches = read_launches(stage_folder)
        for kind in dict.fromkeys(launch["executor"] for launch in launches):
            mine = [launch for launch in launches if launch["executor"] == kind]
            stopped += executor_class(kind).cancel(stage_folder, mine, folder.path)
    return list(dict.fromkeys(stopped))
