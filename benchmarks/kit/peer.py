"""datatrove in its own environment, so that no package of stagger makes it faster or slower.

`versions` runs in the interpreter of that environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.kit import measure

VERSION = "0.10.1"
REQUIREMENT = f"datatrove[io,s3]=={VERSION}"


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "stagger-benchmarks", f"datatrove-{VERSION}")


class Peer:
    """The environment in `folder`, created if it is missing. Raises RuntimeError when it cannot be created.

    None of its packages requires isal, which speeds up gzip. isal is installed into the separate folder `isal`, which
    only the tasks that use it add to their path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.python = str(self.folder / "bin" / "python")
        self.isal = str(self.folder / "with-isal")
        if not os.path.exists(self.python) or not os.path.isdir(self.isal) or self.versions()["datatrove"] != VERSION:
            self._make()

    def _make(self) -> None:
        measure.say(f"making an environment for {REQUIREMENT} in {self.folder}")
        constraints = measure.ROOT / "constraints.txt"
        pinned = ["--constraint", str(constraints)] if constraints.exists() else []
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned]
        measure.run([sys.executable, "-m", "venv", str(self.folder)])
        measure.run([*pip, REQUIREMENT])
        measure.run([*pip, "--target", self.isal, "isal"])

    def versions(self) -> dict[str, str | None]:
        """The installed versions of the packages that affect the figures; None for those that are missing."""
        found: dict[str, str | None] = measure.fresh(versions, python=self.python)[0]
        return found


def versions() -> dict[str, str | None]:
    return {name: measure.version(name) for name in ("datatrove", "fsspec", "orjson", "s3fs", "warcio", "zstandard")}
