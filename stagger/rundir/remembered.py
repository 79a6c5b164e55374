"""Remembers for this user how runs on remote storage are reached, so that no command needs their options again.

One small file a run, in the user's own state folder: it holds the storage options as they were written, `${NAME}`
included, and never a secret. A file that is damaged, or that another user can have written, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Any

import orjson

from stagger.errors import StaggerError
from stagger.storage.ownership import foreign, open_to_others
from stagger.storage.secrecy import clear_secrets
from stagger.storage.storage import Storage, absolute, is_local
from stagger.terminal import logger

#: Largest size of a file in bytes, and most files: the oldest ones are removed.
MOST_BYTES, MOST_FILES = 65_536, 1000

Options = dict[str, dict[str, Any]]


def remembered_folder() -> str:
    """The folder of the files: `$XDG_STATE_HOME/stagger/runs`, or below `~/.local/state`."""
    import platformdirs  # Imported late: only commands about remote runs come here.

    return os.path.join(platformdirs.user_state_dir("stagger"), "runs")


def remembered_file(run_dir: str) -> str:
    """The path of the file of a run."""
    return os.path.join(remembered_folder(), f"{hashlib.sha256(run_dir.encode()).hexdigest()[:32]}.json")


def remember(run_dir: str, options: Options) -> None:
    """Remember the storage options of a remote run. Does nothing where that is not possible, or for a secret."""
    if is_local(run_dir) or not options or list(clear_secrets(options, ())):
        return
    with contextlib.suppress(OSError, StaggerError, TypeError):  # TypeError: what JSON cannot hold.
        data = orjson.dumps({"run_dir": run_dir, "storage_options": options}, option=orjson.OPT_INDENT_2)
        if len(data) > MOST_BYTES:
            return
        path = remembered_file(run_dir)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        Storage().write(path, data, private=True)
        _remove_oldest(os.path.dirname(path))


def _remove_oldest(folder: str) -> None:
    with os.scandir(folder) as entries:
        files = sorted((entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries)
    for _, path in files[:-MOST_FILES]:
        with contextlib.suppress(OSError):
            os.unlink(path)


def recalled(run: str) -> Options:
    """The storage options that were remembered for a run; empty if there are none. Raises StaggerError for no path."""
    run_dir = absolute(run)
    if is_local(run_dir):
        return {}
    path = remembered_file(run_dir)
    try:
        content = orjson.loads(_trusted(path))
        if content["run_dir"] != run_dir:
            return {}
        options: Options = content["storage_options"]
        if not all(isinstance(one, dict) for one in options.values()):
            raise ValueError("storage_options is no mapping of mappings")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning(f"{path} is ignored ({type(error).__name__}: {error}); it is of no use and can be removed")
        return {}
    return options


def _trusted(path: str) -> bytes:
    """The content of a file that only this user, or root, can have written. Raises ValueError for any other."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or foreign(info) or (who := open_to_others(info)):
            raise ValueError("it is no file of yours" if not stat.S_ISREG(info.st_mode) or foreign(info) else who)
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return data
