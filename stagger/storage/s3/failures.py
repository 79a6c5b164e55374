"""Failed requests to S3 as errors that name the path, in one line each."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from stagger.errors import BadInput, StaggerError, StorageError
from stagger.storage.faults import fault_of, status_of
from stagger.storage.s3.engine import Changed

#: What to do about an answer 501, appended to the error.
NOT_IMPLEMENTED = (
    "NotImplemented (501) means that the store does not know a header or this kind of request. If it is the checksum"
    " headers, set AWS_REQUEST_CHECKSUM_CALCULATION=when_required (docs/storage.md)."
)
NO_CREATE = (
    "NotImplemented (501) means that the store has no conditional writes (If-None-Match), which keep two launches of a"
    " run, or two attempts of a rank, apart. Put run_dir on a shared file system or on another store (docs/storage.md);"
    " input and output may stay here."
)


class NoConditions(StorageError):
    """The store does not implement conditional writes."""


@contextlib.contextmanager
def asking(path: str) -> Iterator[None]:
    """Turn any error of the store or the network into a StorageError naming the path; a missing file's error passes."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, Changed, StaggerError, BadInput):
        raise
    except Exception as error:  # The engines' errors have no common base.
        raise StorageError(f"{path}: {explain(error)}") from error


def explain(error: BaseException, advice: str = NOT_IMPLEMENTED) -> str:
    """One line on what went wrong, including the store's own message, and `advice` for an answer 501."""
    from stagger.storage.s3.refusals import UNREACHABLE, meaning  # Tasks whose requests succeed do without it.

    kind = type(error).__name__ if error.__cause__ is None else type(error.__cause__).__name__
    text = " ".join(str(error).partition("Debug source:")[0].split())
    if "<Error>" in text:  # obstore includes the raw XML answer.
        text = ": ".join(re.findall(r"<(?:Code|Message)>([^<]*)<", text))
    if text == "None":  # Ceph's RGW sends a code without a message.
        text = str(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", text))
    fault = fault_of(error)
    exhausted = f" ({fault}; retries exhausted)" if fault else ""
    text = f"{kind}: {text}{exhausted}{f'. {advice}' if status_of(error) == 501 else ''}"
    meant = UNREACHABLE if fault == "unreachable" else "" if fault else meaning(error)
    return f"{meant} ({text})" if meant else text


def no_bucket(path: str, bucket: str, done: str) -> StaggerError:
    return StaggerError(f"{path} cannot be {done}: there is no bucket {bucket}. Create it, or correct the path.")
