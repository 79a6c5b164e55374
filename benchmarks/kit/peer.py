"""datatrove in an environment of its own, where no package of stagger's speeds it up or holds it back.

`versions` is called by that environment's interpreter.
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
    """The environment in `folder`, made when it is not there. Raises RuntimeError when it cannot be made.

    None of its packages asks for isal, which speeds up gzip: it lies in `isal`, where only tasks that want it look.
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
        """What is installed there, of the packages that matter here."""
        found: dict[str, str | None] = measure.fresh(versions, python=self.python)[0]
        return found


def versions() -> dict[str, str | None]:
    return {name: measure.version(name) for name in ("datatrove", "fsspec", "orjson", "s3fs", "warcio", "zstandard")}
