"""An S3 server for load and fault tests: fast, seeded faults, counts of every request; standard library only.

As a program it prints one JSON line with its endpoint. If its standard input is a pipe, it runs until that is closed:

    python -m tests.kit.s3_server --bucket data --virtual data/shards/:1000:64M --rate 3500 --p-503 0.01 --seed 7

From tests: `with running("--bucket", "data") as server: server.set_faults(p_reset=0.1)`. Signatures are not checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.kit.s3_server.protocol import ADMIN

#: The folder from which `tests` is imported.
ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class S3Server:
    """A running server, as seen by the process that started it."""

    endpoint: str
    pid: int

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.admin("GET", "stats")
        return found

    def log(self) -> list[tuple[str, str, str, int]]:
        """(kind, key or prefix, range, status) of each request, oldest first; status 0 without a response."""
        return [tuple(entry) for entry in self.admin("GET", "log")]

    def set_faults(self, **settings: Any) -> None:
        """Set the faults: see `faults.Settings`. Settings that are not given are off."""
        self.admin("PUT", "faults", settings)

    def held(self) -> int:
        """Number of requests that wait for `release`."""
        number: int = self.admin("GET", "held")
        return number

    def release(self) -> None:
        self.admin("POST", "release")

    def reset(self) -> None:
        """Restart counts and log, and the faults' seed and token bucket; objects stay."""
        self.admin("POST", "reset")

    def add_virtual(self, bucket: str, prefix: str, count: int, size: int) -> None:
        """Add objects `{prefix}00000000`, ..., that take no memory."""
        self.admin("PUT", "virtual", {"bucket": bucket, "prefix": prefix, "count": count, "size": size})

    def admin(self, method: str, name: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.endpoint}/{ADMIN}/{name}", data, method=method), timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def running(*options: str | int | float | Path) -> Iterator[S3Server]:
    """A server in its own process, with the program's options, for the duration of the block."""
    command = [sys.executable, "-m", __name__, *map(str, options)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            started = json.loads(process.stdout.readline())
            yield S3Server(started["endpoint"], started["pid"])
        finally:
            process.stdin.close()
