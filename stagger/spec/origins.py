"""Where each value of a run was set: the command line, the pipeline file, a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagger.spec.merging import leaves
from stagger.spec.place import Place
from stagger.spec.yaml_file import Path

#: Keys that are no settings: they say what a run does.
NO_SETTINGS = ("pipeline", "blocks", "name", "depends", "uses")

#: The setting that has a default of its own when no file sets it.
TYPE = ("executor", "type")


def origins_of(
    values: Mapping[str, Any],
    place: Place,
    elsewhere: Mapping[Path, str],
    profile: str | None,
    given: Mapping[Path, str],
    path: Path = (),
    prefix: str = "",
) -> dict[str, str]:
    """Setting -> where its value was set, for the values at `path` of a file. Settings begin with `prefix`.

    `elsewhere` holds the places of the values of `profile`, `given` the options of the command line that set keys.
    """
    found = {}
    for leaf in leaves({key: value for key, value in values.items() if key not in NO_SETTINGS}):
        whole = (*path, *leaf)
        if whole in elsewhere:
            origin = f"profile {profile} ({elsewhere[whole]})"
        elif by := [option for key, option in given.items() if _same_branch(key, whole) or _same_branch(key, leaf)]:
            origin = by[-1]
        elif leaf == TYPE and whole not in place.lines:
            continue
        else:
            origin = place.line(whole)
        found[prefix + ".".join(map(str, leaf))] = origin
    return found


def _same_branch(one: Path, other: Path) -> bool:
    """Whether one of two paths leads to the other."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
