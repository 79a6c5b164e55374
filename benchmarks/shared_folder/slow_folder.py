"""A stand-in for a parallel file system: a FUSE mount of `/` whose metadata operations each take some time.

`python slow_folder.py MOUNT COUNTER LATENCY_S WRITABLE` runs until MOUNT is unmounted. COUNTER holds the number of
operations. Only what lies below the folder WRITABLE can be changed.

The kernel is the client. It keeps names and attributes that it has once seen, as a client of Lustre does under its
locks, and asks the server for each open, each new name, and each change. Data takes no time of its own. Needs fusepy,
libfuse 2 and the rights of root.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import threading
import time
from typing import Any

#: Attributes of a file that FUSE wants.
ATTRIBUTES = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_mtime", "st_atime", "st_ctime", "st_ino")

#: Seconds for which the kernel keeps names and attributes: longer than a benchmark takes.
KEPT_S = 3600

#: Operations on an open file: no metadata server takes part.
ON_DATA = frozenset(("read", "write", "flush", "fsync", "release"))

#: Operations that change what lies at their first path, and for `rename` also at the second.
CHANGES = frozenset(
    ("create", "truncate", "mkdir", "rmdir", "unlink", "rename", "link", "symlink", "chmod", "chown", "utimens")
)


class SlowFolder:
    """The operations of `/`, called by fusepy as `SlowFolder(...)(name, *arguments)`."""

    use_ns = True

    def __init__(self, counter: str, latency_s: float, writable: str) -> None:
        self.counter = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.latency_s = latency_s
        self.writable = f"{writable}/"
        self.operations = 0
        self.counting = threading.Lock()

    def __call__(self, name: str, *arguments: Any) -> Any:
        if name in ("init", "destroy"):
            return None
        if name not in ON_DATA:
            time.sleep(self.latency_s)
            with self.counting:
                self.operations += 1
                os.pwrite(self.counter, b"%d" % self.operations, 0)
        if name in CHANGES:
            self.check_writable(*arguments[: 2 if name == "rename" else 1])
        return getattr(self, name)(*arguments)

    def check_writable(self, *paths: str) -> None:
        for path in paths:
            if not path.startswith(self.writable):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        found = os.lstat(path)
        times = {name: getattr(found, f"{name}_ns") for name in ("st_mtime", "st_atime", "st_ctime")}
        return {**{name: getattr(found, name) for name in ATTRIBUTES}, **times}

    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self.check_writable(path)
        return os.open(path, flags)

    def create(self, path: str, mode: int) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        return os.pread(handle, size, offset)

    def write(self, path: str, data: bytes, offset: int, handle: int) -> int:
        return os.pwrite(handle, data, offset)

    def flush(self, path: str, handle: int) -> None:
        pass

    def fsync(self, path: str, datasync: int, handle: int) -> None:
        os.fsync(handle)

    def release(self, path: str, handle: int) -> None:
        os.close(handle)

    def readdir(self, path: str, handle: int) -> list[str]:
        return [".", "..", *os.listdir(path)]

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def truncate(self, path: str, length: int, handle: int | None = None) -> None:
        os.truncate(path, length)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def link(self, target: str, source: str) -> None:
        os.link(source, target)

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, target)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: str, user: int, group: int) -> None:
        os.chown(path, user, group)

    def utimens(self, path: str, times: tuple[int, int]) -> None:
        os.utime(path, ns=times)


def main() -> None:
    mount, counter, latency_s, writable = sys.argv[1:]
    fuse: Any = importlib.import_module("fuse")
    folder = SlowFolder(counter, float(latency_s), writable)
    kept = {f"{what}_timeout": KEPT_S for what in ("entry", "negative", "attr")}
    fuse.FUSE(folder, mount, foreground=True, use_ino=True, fsname="slow_folder", **kept)


if __name__ == "__main__":
    main()
