"""The gateway as a program: two beside each other, and nothing left of one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, until

pytestmark = pytest.mark.rgw


def daemons_in(folder: Path) -> list[str]:
    """The command lines of the processes that were started with the configuration in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It has ended.
            continue
        if f"{folder}/stagger-rgw-" in line:
            found.append(line)
    return found


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, None])
def test_nothing_is_left_of_a_gateway_however_it_ends(
    gateway: str, tmp_path_factory: pytest.TempPathFactory, end: signal.Signals | None
) -> None:
    """It runs beside the session's. None: its standard input is closed, as when the tests that use it are killed."""
    folder = tmp_path_factory.mktemp("rgw")
    command = [sys.executable, "-m", "tests.rgw.gateway"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert b"127.0.0.1" in other.stdout.readline()
        assert len(daemons_in(folder)) == 3
        if end is None:
            other.stdin.close()
        else:
            other.send_signal(end)
        other.wait(timeout=60)
    until(lambda: daemons_in(folder) == [], "the daemons to end")
    assert end == signal.SIGKILL or list(folder.iterdir()) == []
