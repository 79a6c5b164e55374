"""Makes a bundle that a launch could not: `python -I -m stagger.bundle.first REQUEST`, in the first task that starts.

The launch cannot run the Python of a container or a conda environment. In place of the bundle it writes a request that
names the modules. A task renames the request (boot.py), which only one can, and runs this program.
"""

from __future__ import annotations

import os
import subprocess
import sys

from stagger.bundle import MAKING, REQUEST
from stagger.bundle.make import MAKE


def main(request: str) -> None:
    """Make the bundle. If that fails, tasks import their modules one by one."""
    with open(request, "rb") as file:
        modules = file.read().removeprefix(REQUEST).decode().split()
    command = [sys.executable, "-I", "-S", "-c", MAKE, request.removesuffix(MAKING), *modules]
    subprocess.run(command, check=False, capture_output=True)
    os.unlink(request)


if __name__ == "__main__":
    main(sys.argv[1])
