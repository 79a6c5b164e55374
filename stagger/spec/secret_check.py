"""Rejects secrets in clear text: run.json, the plan and the job scripts would keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagger.errors import StaggerError
from stagger.spec.place import Place
from stagger.spec.yaml_file import Path
from stagger.storage.secrecy import clear_secrets, secret_by_form

#: How to give a secret to storage, and to a step, in a pipeline file.
BY_REFERENCE = "write ${NAME} and export NAME"
STORAGE = f"{BY_REFERENCE}, or use the usual AWS variables and files"

#: How to give a secret to a step that is a Python object.
IN_PYTHON = "let the step read it from os.environ when it is called"

#: How to give a secret to a host of blocks in a run of Python objects.
IN_HOST = "let the host read it from os.environ when it is created"

#: How to give a secret to a key that is expanded at launch.
IN_JOB = "export it and use it in the job: in executor.env.setup, $${NAME} is left to the job's own shell"


def check_secrets(value: Any, place: Place, path: Path, instead: str) -> None:
    """Raise StaggerError for a secret in clear text in `value`, at `path` of the file. `instead` is what to do."""
    for where, reason in clear_secrets(value, path):
        raise clear_text(place.of(where), reason, instead)


def check_storage_options(options: Any, place: Place, path: Path = ("storage_options",)) -> None:
    """Raise StaggerError for storage options that hold a secret in clear text, or that JSON cannot hold."""
    check_secrets(options, place, path, STORAGE)
    for where in not_json(options, path):
        raise StaggerError(f"{place.of(where)}: JSON cannot hold this value; use text, a number, a list or a mapping.")


def check_forms(value: Any, place: Place, path: Path, instead: str = IN_JOB) -> None:
    """Raise StaggerError for a text in `value` that is a secret by its form: `value` has its variables replaced."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_forms(item, place, (*path, str(key)), instead)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_forms(item, place, (*path, index), instead)
    elif isinstance(value, str) and (reason := secret_by_form(value)):
        raise clear_text(place.of(path), reason, instead)


def clear_text(where: str, reason: str, instead: str) -> StaggerError:
    return StaggerError(f"{where}: a secret in clear text would be stored with the run ({reason}); {instead}.")


def not_json(value: Any, path: Path) -> list[Path]:
    """The places below `path` of values that JSON cannot hold, such as YAML's binary values and sets."""
    if isinstance(value, Mapping):
        return [where for key, item in value.items() for where in not_json(item, (*path, str(key)))]
    if isinstance(value, (list, tuple)):
        return [where for index, item in enumerate(value) for where in not_json(item, (*path, index))]
    return [] if value is None or isinstance(value, (str, int, float, bool)) else [path]
