"""`${NAME}` in a pipeline file: replaced at launch in most keys, kept where secrets belong.

`storage_options`, the parameters of steps and `host_options` keep their references: the run stores them as written, and
each task replaces them from its own environment.
"""

from __future__ import annotations

import re
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.place import Place
from stagger.spec.secret_check import BY_REFERENCE, check_forms, check_secrets
from stagger.spec.yaml_file import Path
from stagger.storage.storage import expand_variables, key_text

#: Keys that hold a path, and a part of a path that a shell would replace.
PATHS = ("run_dir", "path", "paths_file", "venv", "container", "log_dir", "template", "chdir", "model")
SHELL_VARIABLE = re.compile(r"(?:^|/)\$([A-Za-z_]\w*)(?:/|$)")


def expanded(value: Any, path: Path, place: Place) -> Any:
    """`value`, at `path` of the file, with `${NAME}` replaced, except where references are kept.

    Raises StaggerError, naming the key, for a variable that is not set, and for a secret in clear text.
    """
    if keeps_references(path):
        if path[0] != "storage_options":
            check_secrets(value, place, path, BY_REFERENCE)
        _expanded(value, path, place)
        return value
    if isinstance(value, dict):
        return {key: expanded(item, (*path, str(key)), place) for key, item in value.items()}
    if isinstance(value, list):
        return [expanded(item, (*path, index), place) for index, item in enumerate(value)]
    text = _expanded(value, path, place)
    check_forms(text, place, path)
    return text


def check_shell_variable(value: Any, path: Path, place: Place) -> None:
    """Raise StaggerError for a path with `$NAME`, which only a shell would replace."""
    if path[-1:] and path[-1] in PATHS and isinstance(value, str) and (found := SHELL_VARIABLE.search(value)):
        name = found[1]
        raise StaggerError(f"{place.of(path)}: ${name} is not replaced; write ${{{name}}}.")


def keeps_references(path: Path) -> bool:
    """Whether the value at `path` of a file is stored with its references.

    >>> keeps_references(("pipeline", 0, "read_jsonl")), keeps_references(("stages", 1, "blocks", "host_options"))
    (True, True)
    >>> keeps_references(("run_dir",)), keeps_references(("pipeline", 0)), keeps_references(("pipeline", 0, "use"))
    (False, False, False)
    """
    if path[:1] == ("stages",):
        path = path[2:]
    if path in (("storage_options",), ("blocks", "host_options")):
        return True
    return len(path) == 3 and path[0] == "pipeline" and path[2] != "use"


def literal(text: str | None) -> str | None:
    """`text` written so that replacing references leaves it as it is.

    >>> literal("models/${x}")
    'models/$${x}'
    """
    return None if text is None else text.replace("${", "$${")


def _expanded(value: Any, path: Path, place: Place) -> Any:
    if isinstance(value, dict):
        return {key: _expanded(item, (*path, str(key)), place) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, (*path, index), place) for index, item in enumerate(value)]
    check_shell_variable(value, path, place)
    try:
        return expand_variables(value, path)
    except StaggerError as error:
        raise StaggerError(f"{place.of(path)}: {str(error).removeprefix(key_text(path))}") from None
