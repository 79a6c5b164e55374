"""Makes a bundle that a launch could not: `python -I -m stagger.bundle.first SETTINGS`, in the first task that starts.

The launch cannot run the Python of a container or a conda environment. It writes a request in place of the bundle.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from stagger.bundle import REQUEST, bundle_path
from stagger.bundle.make import MAKE


def main(settings: str) -> None:
    """Make the bundle that was requested, unless another task does. Without it, tasks import modules one by one."""
    path = bundle_path(settings)
    mine = f"{path}.{os.uname().nodename}.{os.getpid()}"
    with contextlib.suppress(OSError):
        os.rename(path, mine)  # Of all tasks, one can.
        try:
            with open(mine, "rb") as file:
                modules = file.read().removeprefix(REQUEST).decode().split()
            subprocess.run([sys.executable, "-I", "-S", "-c", MAKE, path, *modules], check=False, capture_output=True)
        finally:
            os.unlink(mine)


if __name__ == "__main__":
    main(sys.argv[1])
