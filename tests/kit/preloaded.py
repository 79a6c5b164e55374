"""Runs commands and tasks in processes of their own that need not import modules: forks of one process that has.

Run as a program it is that process. It reads requests from the socket that is its standard input.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer.main

#: What the process imports before it forks: what most commands use, and the clients of S3.
MODULES = (
    "stagger.cli.main",
    "stagger.api",
    "stagger.launch.dry_run",
    "stagger.launch.launch",
    "stagger.launch.retry",
    "stagger.spec.load",
    "stagger.steps.jsonl",
    "stagger.task.attempt",
    "stagger.cli.mistakes",
    "stagger.cli.show",
    "loguru",
    "s3fs",
    "obstore",
)

#: The models of the spec that are built before it forks: most commands validate with them.
MODELS = ("PipelineFile", "RunSpec", "StageSpec", "StorageSpec")

#: Beginnings of variables that Python reads when it starts: a command that has its own needs a new process. (Not with
#: another PYTHONPATH, which is heeded all the same.)
OF_PYTHON = ("PYTHON", "LANG", "LC_")


class Preloaded:
    """The process that has the modules. It ends with the process that has made it."""

    def __init__(self, *before: str, umask: int = -1) -> None:
        self.socket, its_own = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*before, sys.executable, __file__]
        self.process = subprocess.Popen(command, stdin=its_own.fileno(), stdout=subprocess.DEVNULL, umask=umask)
        its_own.close()
        atexit.register(self.process.wait)
        atexit.register(self.socket.close)

    def run(
        self, arguments: list[str], folder: Path, environment: dict[str, str], module: str = "stagger"
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m module` with these arguments, like subprocess.run with captured output."""
        pipes = [os.pipe() for _ in range(3)]
        request = json.dumps([module, arguments, str(folder), environment]).encode()
        socket.send_fds(self.socket, [request], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        out, err, status = read_all([end for end, _ in pipes])
        return subprocess.CompletedProcess(arguments, int(status), out.decode(), err.decode())


@functools.cache
def preloaded(*before: str, umask: int = -1) -> Preloaded:
    """The one process of this session that the command `before` starts, made when it is first needed."""
    return Preloaded(*before, umask=umask)


def same_python(environment: Mapping[str, str]) -> bool:
    """Whether Python's own settings are those of the preloaded process."""
    return settings_of_python(environment) == settings_of_python(os.environ)


def settings_of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_PYTHON) and name != "PYTHONPATH"}


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


def next_request(requests: socket.socket) -> list[Any]:
    """Fork for each request. Returns it in the child that is to serve it; empty when nobody asks any more."""
    status_ends: dict[int, int] = {}

    def report(*_: Any) -> None:
        while status_ends and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            os.write(status_ends[ended[0]], str(os.waitstatus_to_exitcode(ended[1])).encode())
            os.close(status_ends.pop(ended[0]))

    signal.signal(signal.SIGCHLD, report)
    while True:
        request, ends, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not request:
            return []
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        if not (child := os.fork()):
            break
        status_ends[child] = ends[2]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.close(ends[0])
        os.close(ends[1])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    requests.detach()
    for number, end in enumerate((os.open(os.devnull, os.O_RDONLY), *ends[:2])):
        os.dup2(end, number)
    os.closerange(3, 256)
    return list(json.loads(request))


def run_module(module: str, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Run a module as a new process would. Returns the exit status."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["", *arguments]
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def leave() -> None:
    """End without taking the modules apart, which would copy the memory that is shared with the other children."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    status = 0
    atexit.register(leave)  # The first to be registered is the last to be called.
    for name in MODULES:
        importlib.import_module(name)
    for name in MODELS:
        getattr(importlib.import_module("stagger.spec.models"), name).model_rebuild()
    typer.main.get_command = functools.cache(typer.main.get_command)  # Making the parser takes longer than a command.
    typer.main.get_command(importlib.import_module("stagger.cli.main").app)
    gc.freeze()  # Collections in the children would copy the memory, too.
    if request := next_request(socket.socket(fileno=os.dup(0))):
        status = run_module(*request)
