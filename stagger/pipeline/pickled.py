"""Pipelines of Python objects (functions, lambdas, instances). Nothing else is ever pickled."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from typing import Any, cast

from stagger.errors import StaggerError
from stagger.pipeline.chain import Step
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
    """The unpickled steps. Raises StaggerError when the file is another user's, or not the one that was launched."""
    if is_local(path) and os.stat(path).st_uid not in (os.geteuid(), 0):
        raise StaggerError(f"{path} belongs to another user; loading it would run that user's code.")
    data = storage.read(path)
    if sha256(data) != expected_sha256:
        raise StaggerError(f"{path} is not the pipeline that was launched; launch it again.")
    return cast("list[Any]", pickle.loads(data))  # noqa: S301 - checked above
