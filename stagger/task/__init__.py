"""One task, top to bottom: its settings, its entry, an attempt, its log. Imports no launch, executor or spec.

A launch passes the settings to each task as one JSON argument in the job script. (They live in the package's own file
because every task imports it: one more file would cost each task six file-system calls.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from stagger.errors import StaggerError


class Superseded(StaggerError):
    """A later attempt of the rank has begun, or has claimed the commit: this one must not commit any more."""


class Committed(Exception):
    """An earlier attempt has committed the whole rank meanwhile."""


@dataclass(frozen=True)
class TaskSettings:
    """Everything that a task needs besides its rank and the plan.

    `storage_options` holds secrets only as `${NAME}`; `cwd` is the folder that the run was launched from; `commit` is
    `rank` or `shard`, the unit in which outputs are committed; `hold_s` is how many seconds a job holds its slot after
    its start; `shared` is whether a group shares the run; `pickle_path` is set only for pipelines of Python objects.
    """

    stage_dir: str
    fingerprint: str
    launch: int
    cwd: str
    import_path: list[str] = field(default_factory=list)
    storage_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    start_policy: str = "uniform"
    window_s: int = 0
    hold_s: int = 0
    commit: str = "rank"
    max_requeues: int = 0
    retry_seconds: float = 600.0
    read_ahead_mb: int = 64
    shared: bool = False
    pickle_path: str = ""
    pickle_sha256: str = ""

    def to_json(self) -> str:
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> TaskSettings:
        return cls(**orjson.loads(text))
