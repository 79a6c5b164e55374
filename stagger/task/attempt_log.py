"""The log of one attempt: everything that the task, its steps and their libraries print.

Standard output and standard error are redirected at file-descriptor level, which captures `print`, loguru, logging,
warnings and C libraries without buffering. It also spares a task importing loguru (1000 file-system calls) for a few
lines of its own.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from stagger.storage.local_files import make_folder
from stagger.storage.storage import Storage, is_local, without_secrets


def log(message: str, level: str = "INFO") -> None:
    """Print one line on standard error, in loguru's format, as steps log theirs. Warnings and errors lose secrets."""
    if level in ("WARNING", "ERROR"):
        message = without_secrets(message)
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    print(f"{stamp}.{int(now % 1 * 1000):03d} | {level: <8} | {message}", file=sys.stderr, flush=True)


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
            import tempfile

            self._file, self._name = tempfile.mkstemp(prefix="stagger-", suffix=".log")
        else:
            self._file, self._name = self._open_log(), self._path
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = os.dup(1), os.dup(2)
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)
        return self

    def _open_log(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            return os.open(self._path, flags, 0o666)
        except FileNotFoundError:
            make_folder(os.path.dirname(self._path))
            return os.open(self._path, flags, 0o666)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for saved, descriptor in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        os.close(self._file)
        if self._spool:
            with open(self._name, "rb") as file:
                data = file.read()
            os.unlink(self._name)
            self._storage.write(self._path, data)
