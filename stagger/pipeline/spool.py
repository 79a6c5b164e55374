"""Outputs to remote storage that wait on this machine's disk: many at once would not fit into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import IO

from stagger.storage import Output

#: Bytes that are copied at once.
COPY_BYTES = 2**20


class Spool:
    """A temporary file without a name, in which the outputs of a rank lie in pieces, in the order they were written."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="stagger-")  # noqa: SIM115 # Closed with the rank.
        self._end = 0

    def append(self, data: bytes) -> tuple[int, int]:
        """Append a piece. Returns its start and its end. Raises OSError with the folder when the disk is full."""
        start = self._end
        self._file.seek(start)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise type(error)(error.errno, f"{error.strerror} (TMPDIR names another folder)", folder) from None
        self._end += len(data)
        return start, self._end

    def read(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)

    def close(self) -> None:
        self._file.close()


class SpooledOutput:
    """An output whose bytes wait in a spool until it is finished."""

    def __init__(self, output: Output, spool: Spool) -> None:
        self.path = output.path
        self.size = 0
        self._output = output
        self._spool = spool
        self._pieces: list[tuple[int, int]] = []

    @property
    def version(self) -> str:
        return self._output.version

    @version.setter
    def version(self, version: str) -> None:
        self._output.version = version

    @property
    def digest(self) -> str:
        return self._output.digest

    @property
    def pending(self) -> str:
        return self._output.pending

    @property
    def held(self) -> int:
        return self._output.held

    def write(self, data: bytes) -> int:
        if data:
            start, end = self._spool.append(data)
            if self._pieces and self._pieces[-1][1] == start:
                start = self._pieces.pop()[0]
            self._pieces.append((start, end))
            self.size += len(data)
        return len(data)

    def pause(self) -> None: ...

    def finish(self) -> None:
        for start, end in self._pieces:
            for place in range(start, end, COPY_BYTES):
                self._output.write(self._spool.read(place, min(place + COPY_BYTES, end)))
        self._pieces = []
        self._output.finish()

    def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
        self._output.commit(confirm, replaces)

    def withdraw(self) -> None:
        self._output.withdraw()

    def abort(self) -> None:
        self._output.abort()
