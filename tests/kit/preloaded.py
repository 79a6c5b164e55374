"""Runs `stagger` in processes of their own that need not import its modules: forks of one process that has.

Run as a program it is that process. It reads requests from the socket that is its standard input.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

#: What the process imports before it forks: what most commands use, and the clients of S3.
MODULES = (
    "stagger.cli.main",
    "stagger.api",
    "stagger.launch.dry_run",
    "stagger.launch.launch",
    "stagger.launch.retry",
    "stagger.spec.load",
    "stagger.steps.jsonl",
    "s3fs",
    "obstore",
)

#: Beginnings of variables that Python reads when it starts: a command that has its own needs a new process.
OF_PYTHON = ("PYTHON", "LANG", "LC_")


class Preloaded:
    """The process that has the modules. It ends with the process that has made it."""

    def __init__(self) -> None:
        self.socket, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen([sys.executable, __file__], stdin=its_own, stdout=subprocess.DEVNULL)
        its_own.close()
        atexit.register(process.wait)
        atexit.register(self.socket.close)

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run `stagger` with these arguments, like subprocess.run with captured output."""
        pipes = [os.pipe() for _ in range(3)]
        request = json.dumps([arguments, str(folder), environment]).encode()
        socket.send_fds(self.socket, [request], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        out, err, status = read_all([end for end, _ in pipes])
        return subprocess.CompletedProcess(arguments, int(status), out.decode(), err.decode())


@functools.cache
def preloaded() -> Preloaded:
    """The one process of this session, made when it is first needed."""
    return Preloaded()


def same_python(environment: Mapping[str, str]) -> bool:
    """Whether Python's own settings are those of the preloaded process."""
    return settings_of_python(environment) == settings_of_python(os.environ)


def settings_of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_PYTHON)}


def read_all(ends: list[int]) -> list[bytes]:
    """Read each pipe until nobody holds its other end."""
    found = dict.fromkeys(ends, b"")
    with selectors.DefaultSelector() as ready:
        for end in ends:
            ready.register(end, selectors.EVENT_READ)
        while ready.get_map():
            for key, _ in ready.select():
                if data := os.read(key.fd, 1 << 16):
                    found[key.fd] += data
                else:
                    ready.unregister(key.fd)
                    os.close(key.fd)
    return list(found.values())


def become_next_command(requests: socket.socket) -> bool:
    """Fork for each request. Returns True in the child that is to be the command, False when nobody asks any more."""
    while True:
        request, ends, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return False
        if not (keeper := os.fork()):
            requests.detach()
            break
        os.waitpid(keeper, 0)
        for end in ends:
            os.close(end)
    if os.fork():  # The keeper ends at once, so that init cares for the one that waits.
        os._exit(0)
    if command := os.fork():
        _, status = os.waitpid(command, 0)
        os.write(ends[2], str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    be_the_command(*json.loads(request), ends[:2])
    return True


def be_the_command(arguments: list[str], folder: str, environment: dict[str, str], outputs: list[int]) -> None:
    """Make this process look like a new one."""
    for number, end in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(end, number)
    os.closerange(3, 256)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(Path(importlib.import_module("stagger").__file__ or "").parent / "__main__.py"), *arguments]
    sys.path[0] = folder


if __name__ == "__main__":
    for name in MODULES:
        importlib.import_module(name)
    if become_next_command(socket.socket(fileno=os.dup(0))):
        from stagger.cli.main import main

        main()
