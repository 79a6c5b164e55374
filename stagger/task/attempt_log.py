"""The log of one attempt: everything that the task, its steps and their libraries print.

Standard output and standard error are redirected at file-descriptor level, which captures `print`, loguru, logging,
warnings and C libraries without buffering. It also spares a task importing loguru (1000 file-system calls) for a few
lines of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from types import TracebackType

from stagger.errors import one_line
from stagger.storage.local_files import open_log
from stagger.storage.storage import Storage, is_local, without_secrets


def log(message: str, level: str = "INFO", details: Iterable[str] = ()) -> None:
    """Print one line on standard error, in loguru's format, as steps log theirs. Warnings and errors lose secrets.

    `details` are the parts of a traceback, which follow on lines of their own. Further lines of a part are indented, so
    that no part looks like a line of the log.
    """
    if level in ("WARNING", "ERROR"):
        message = without_secrets(message)
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    lines = [f"{stamp}.{int(now % 1 * 1000):03d} | {level: <8} | {one_line(message)}"]
    for part in details:
        first, *more = (one_line(line, keep="\t") for line in part.removesuffix("\n").split("\n"))
        lines += [first, *(line if line.startswith("  ") else f"    {line}" for line in more)]
    print("\n".join(lines), file=sys.stderr, flush=True)


class AttemptLog:
    """Redirects standard output and error into the attempt's log while it is open.

    On a file system the log is live. An object store cannot append: the log is spooled on this machine and uploaded
    when the attempt ends. With `announce`, an empty log is uploaded at the start.
    """

    def __init__(self, storage: Storage, path: str, *, announce: bool = False) -> None:
        self._storage = storage
        self._path = path
        self._spool = not is_local(path)
        if self._spool and announce:
            storage.write(path, b"")

    def __enter__(self) -> AttemptLog:
        if self._spool:
            self._file = open_spool()
        else:
            self._file = open_log(self._path, self._storage.shared)
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = os.dup(1), os.dup(2)
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for saved, descriptor in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        with open(self._file, "rb" if self._spool else "ab") as file:
            if self._spool:
                file.seek(0)
                self._storage.write(self._path, file.read())


def open_spool() -> int:
    """A file without a name in the folder for temporary files: nobody else can open it, and a kill leaves nothing."""
    import tempfile

    descriptor, path = tempfile.mkstemp(prefix="stagger-", suffix=".log")
    os.unlink(path)
    return descriptor
