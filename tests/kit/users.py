"""Commands run as other users, who need no account."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.kit.preloaded import preloaded

#: The group that shares runs, and one that does not.
TEAM, STRANGERS = 61010, 61011


class User:
    """A user with a number and one group. Runs `stagger` with a umask that would share nothing, and with `env`."""

    def __init__(self, number: int, group: int, folder: Path, **env: str) -> None:
        self.number = number
        self.group = group
        self.folder = folder
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **env}

    def __call__(self, *arguments: str | int | Path, check: int | None = None) -> Ran:
        mine = preloaded(*as_user(self.number, self.group), umask=0o077)
        done = mine.run([*map(str, arguments)], self.folder, self.env)
        if check is not None:
            assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | int | Path) -> subprocess.Popen[str]:
        return self.python("-m", "stagger", *arguments)

    def python(self, *arguments: str | int | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*as_user(self.number, self.group), sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o077,
        )

    def owns(self, *paths: Path) -> None:
        """Give files and folders to the user, with all that is in them."""
        for path in paths:
            for one in (path, *path.rglob("*")):
                os.chown(one, self.number, self.group, follow_symlinks=False)


def as_user(number: int, group: int) -> list[str]:
    """The command that runs another one as this user.

    Where Python lies in a private folder of root's, the user can read everything; it never can write what it may not.
    """
    plain = ["setpriv", "--reuid", str(number), "--regid", str(group), "--clear-groups"]
    drop = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return [*plain, *(drop if python_is_readable(number) else [*read, "--bounding-set=-all,+dac_read_search"]), "--"]


@functools.cache
def python_is_readable(number: int) -> bool:
    """Whether the user can run this Python, in a process that has no capabilities left."""
    drop = ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    command = [
        "setpriv",
        "--reuid",
        str(number),
        "--clear-groups",
        *drop,
        "--",
        "sh",
        "-c",
        'exec "$0" -c "import stagger"',
    ]
    return subprocess.run([*command, sys.executable], capture_output=True).returncode == 0


def need_root() -> None:
    """Skip a test that acts as several users unless root runs it; on CI fail instead."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        text = "root and setpriv (util-linux) are needed to act as other users"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
