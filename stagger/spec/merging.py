"""Merges nested mappings, and lists the paths of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stagger.spec.yaml_file import Path


def merged(below: Any, above: Any) -> Any:
    """Merge two values: mappings key by key, all others replaced by the one `above`.

    >>> merged({"env": {"modules": ["gcc"]}, "time": 5}, {"env": {"setup": []}, "time": 9})
    {'env': {'modules': ['gcc'], 'setup': []}, 'time': 9}
    """
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: merged(below[key], item) if key in below else item for key, item in above.items()}}


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths of the values in nested mappings.

    >>> list(leaves({"executor": {"time": 5, "env": {}}, "tasks": [1]}))
    [('executor', 'time'), ('executor', 'env'), ('tasks',)]
    """
    if not isinstance(value, Mapping) or (not value and path):
        yield path
        return
    for key, item in value.items():
        yield from leaves(item, (*path, key))


def has(value: Any, path: Path) -> bool:
    """Whether nested mappings decide the value at `path`.

    >>> has({"env": {"venv": None}}, ("env", "venv")), has({"env": {}}, ("env", "venv")), has({"env": 3}, ("env", "a"))
    (True, False, True)
    """
    for part in path:
        if not isinstance(value, Mapping):
            return True
        if part not in value:
            return False
        value = value[part]
    return True
