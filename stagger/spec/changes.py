"""Changes to a pipeline file's settings, by the command line or by a retry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stagger.errors import StaggerError
from stagger.spec.assignments import assign
from stagger.spec.messages import validated
from stagger.spec.models import RunSpec, StageSpec
from stagger.spec.place import Place
from stagger.spec.secret_check import check_forms
from stagger.spec.yaml_file import Path

#: Keys of a stage that a retry may change: none affects what a rank reads, does or writes.
CHANGEABLE = ("executor", "randomize_start_duration", "start_policy", "backend_limit", "metadata_limit", "retries")

#: Keys of the run that a retry may change.
CHANGEABLE_OF_RUN = ("retry_seconds", "read_ahead_mb")


@dataclass(frozen=True)
class Changes:
    """Values from the command line that replace the file's. `assignments` are texts such as `a.b=c`."""

    assignments: tuple[str, ...] = ()
    executor: str | None = None
    tasks: int | Literal["auto"] | None = None
    run_dir: str | None = None
    profile: str | None = None

    @property
    def options(self) -> dict[Path, str]:
        """The keys that options besides --set set, and the option that sets each."""
        options = {
            ("tasks",): ("--tasks", self.tasks),
            ("run_dir",): ("--run-dir", self.run_dir),
            ("executor", "type"): ("--executor", self.executor),
        }
        return {key: option for key, (option, value) in options.items() if value is not None}

    def assigned(self, raw: dict[str, Any]) -> dict[Path, str]:
        """Make the assignments in `raw`. Returns the keys that the command line sets, and the option of each.

        Raises StaggerError for an assignment that is malformed, or has no place in the file.
        """
        found = {assign(raw, text): f"--set {text.partition('=')[0]}" for text in self.assignments}
        return found | self.options


def changed_spec(spec: RunSpec, assignments: Sequence[str], stage: str | None) -> RunSpec:
    """Change settings of a run's spec, in all stages or only in `stage`. Raises StaggerError for a key that a retry
    cannot change.
    """
    names = [one.name for one in spec.chosen(stage)]
    raw = spec.model_dump(mode="json")
    prefixes = [f"stages.{name}." for name in names] if len(spec.stages) > 1 else [""]
    for assignment in assignments:
        target = assignment.partition("=")[0]
        key = target.partition(".")[0]
        note_origins(raw["origins"], [""] if key in CHANGEABLE_OF_RUN else prefixes, target)
        if key in CHANGEABLE_OF_RUN:
            assign(raw, assignment)
        elif key in CHANGEABLE:
            for one in raw["stages"]:
                if one["name"] in names:
                    assign(one, assignment)
                    check_forms(one[key], Place("--set", {}), (key,))
        else:
            allowed = ", ".join([*CHANGEABLE, *CHANGEABLE_OF_RUN])
            raise StaggerError(
                f"--set {key}: a retry cannot change {key or 'this'}, only {allowed}. For anything else launch"
                " with a new run_dir."
            )
    stages = [validated(StageSpec, one, Place(f"--set ({one['name']})", {}), ()) for one in raw["stages"]]
    run: RunSpec = validated(RunSpec, {**raw, "stages": stages}, Place("--set", {}), ())
    return run


def note_origins(origins: dict[str, str], prefixes: Sequence[str], target: str) -> None:
    """Note that a retry sets the setting `target`, of the run or of the stages whose settings begin with `prefixes`."""
    for setting in (prefix + target for prefix in prefixes):
        for replaced in [name for name in origins if name == setting or name.startswith(f"{setting}.")]:
            del origins[replaced]
        origins[setting] = "stagger retry --set"
