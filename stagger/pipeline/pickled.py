"""Pipelines of Python objects (functions, lambdas, instances). Nothing else is ever pickled."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from typing import Any, cast

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step
from stagger.storage.late_files import appears
from stagger.storage.ownership import foreign, is_member, open_to_others, user_name
from stagger.storage.storage import Storage, is_local


def dump_pickle(steps: Sequence[Step]) -> bytes:
    """The steps pickled, with the launching script's functions by value. Raises StaggerError when a step cannot be."""
    import cloudpickle

    try:
        return cast("bytes", cloudpickle.dumps(list(steps)))
    except Exception as error:  # Pickling a user's object can raise anything.
        raise StaggerError(
            f"The pipeline cannot be sent to its tasks: {error}. Open files, locks and connections inside the step,"
            " when it runs."
        ) from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def load_pickle(storage: Storage, path: str, expected_sha256: str) -> list[Any]:
    """The unpickled steps. Waits for a local file that is not visible yet.

    Raises StaggerError when the file is missing, when others can change it, or when it was not launched.
    """
    if is_local(path):
        if not os.path.exists(path) and not appears(path, storage.check):
            raise StaggerError(f"{path} is missing; launch the pipeline again from its Python script.")
        info = os.stat(path)
        group = info.st_gid if storage.shared and is_member(os.geteuid(), info.st_gid) else None
        if foreign(info, group):
            raise StaggerError(f"{path} belongs to {user_name(info.st_uid)}; loading it would run that user's code.")
        if clause := open_to_others(info, group):
            raise StaggerError(f"{path} {clause}; loading it could run their code. Launch again.")
    data = storage.read(path)
    if sha256(data) != expected_sha256:
        raise StaggerError(f"{path} is not the pipeline that was launched; launch it again.")
    return cast("list[Any]", pickle.loads(data))  # noqa: S301 - checked above
