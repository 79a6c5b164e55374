"""The local or shared (Lustre, NFS) file system, by plain system calls."""

from __future__ import annotations

import contextlib
import os
import stat
from _thread import get_ident
from collections.abc import Callable, Iterator

from stagger.errors import StaggerError
from stagger.storage import Entry

#: Bytes per read call: shared file systems favour large sequential reads.
READ_BYTES = 2**20

#: Bytes that hold most records of a run directory.
SMALL_BYTES = 2**14


class LocalFiles:
    """A `Backend` over POSIX calls. A file is written aside, fsynced and renamed within its folder."""

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, end - start, start)
        except OSError as error:
            raise named(error, path) from None
        finally:
            os.close(descriptor)

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        return [read_small(path) for path in paths]

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        output = LocalOutput(path, writer_tag(), 0o600 if private else 0o666)
        try:
            output.write(data)
            output.finish()
        except BaseException:
            output.abort()
            raise
        output.commit()

    def create(self, path: str, data: bytes) -> bool:
        make_folder(os.path.dirname(path))
        # Written aside and linked, so that nobody reads a half-written file. link() fails when the name is taken.
        temporary = hidden(path, writer_tag())
        with open(temporary, "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def named(self, folder: str, start: str) -> list[str]:
        below, _, name = start.rpartition("/")
        below = f"{below}/" if below else ""
        try:
            # Not list(): it needs each file's size, which costs one request per file on Lustre.
            with os.scandir(f"{folder}/{below}") as entries:
                return [below + entry.name for entry in entries if entry.name.startswith(name) and is_there(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def list(self, folder: str) -> list[Entry]:
        try:
            with os.scandir(folder) as entries:
                return [found for entry in entries if (found := file_entry(entry, "")) is not None]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> Iterator[Entry]:
        pending = [""]
        seen: set[tuple[int, int]] = set()
        while pending:
            below = pending.pop()
            try:
                info = os.stat(f"{folder}/{below}")
                scan = os.scandir(f"{folder}/{below}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            if (info.st_dev, info.st_ino) in seen:
                raise StaggerError(f"{folder}/{below} is a link to a folder that is listed already; remove the link.")
            seen.add((info.st_dev, info.st_ino))
            with scan as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append(f"{below}{entry.name}/")
                    elif (found := file_entry(entry, below)) is not None:
                        yield found

    def entry(self, path: str) -> Entry | None:
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, info.st_size) if stat.S_ISREG(info.st_mode) else None

    def stream(self, path: str, size: int, version: str) -> Iterator[bytes]:
        # Not open(): it queries the file's size. O_NONBLOCK: a named pipe at this path must not block the task.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            while data := read_piece(descriptor, path):
                yield data
        finally:
            os.close(descriptor)

    def output(self, path: str, tag: str, begin: Callable[[str], None]) -> LocalOutput:
        return LocalOutput(path, tag, 0o666)

    def abort_uploads(self, path: str) -> int:
        return 0

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)
        make_folder(folder)

    def remove_leftovers(self, folder: str, tag: str) -> None:
        for below, _, names in os.walk(folder):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp") and f".{tag}-" in name:
                    self.remove(f"{below}/{name}")

    def check_writable(self, folder: str) -> None:
        existing = folder
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise StaggerError(f"{folder} cannot be created: {existing} is not a folder. Choose another path.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StaggerError(f"{folder} cannot be written: no permission in {existing}. Choose another path.")


def file_entry(entry: os.DirEntry[str], below: str) -> Entry | None:
    """The `Entry` of a file in a folder; None for anything else. A dangling link has size -1, to be noticed."""
    # A listed file may vanish before its stat, as temporary files do. The folder's other files must still be found.
    with contextlib.suppress(FileNotFoundError):
        if entry.is_file():
            return Entry(below + entry.name, entry.stat().st_size)
    return Entry(below + entry.name, -1) if entry.is_symlink() and not entry.is_dir() else None


def is_there(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is a file or a dangling link, as in `file_entry`."""
    return entry.is_file() or (entry.is_symlink() and not entry.is_dir())


def named(error: OSError, path: str) -> OSError:
    """The error with the path: a call on a descriptor does not know it."""
    return type(error)(error.errno, error.strerror, path)


def read_piece(descriptor: int, path: str) -> bytes:
    """The next READ_BYTES of an open file; empty at its end."""
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError as error:
        raise named(error, path) from None


def read_small(path: str) -> bytes | None:
    """The content of a file; None if it does not exist. Takes fewer system calls than open(): it reads thousands."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        pieces = [os.read(descriptor, SMALL_BYTES)]
        while more := os.read(descriptor, READ_BYTES):
            pieces.append(more)
        return b"".join(pieces)
    except OSError as error:
        raise named(error, path) from None
    finally:
        os.close(descriptor)


class LocalOutput:
    """A file written under a hidden temporary name in its final folder, then fsynced and renamed."""

    def __init__(self, path: str, tag: str, mode: int) -> None:
        self.path = path
        self.size = 0
        self._temporary = hidden(path, tag)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self._descriptor = os.open(self._temporary, flags, mode)
        except FileNotFoundError:
            make_folder(os.path.dirname(path))
            self._descriptor = os.open(self._temporary, flags, mode)

    @property
    def held(self) -> int:
        return 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view:  # A disk that fills up takes part of the data first, and rejects the next call.
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise named(error, self.path) from None
        self.size += len(data)
        return len(data)

    def finish(self) -> None:
        try:
            os.fsync(self._descriptor)
            self._close()
        except OSError as error:  # Some file systems notice only now that there is no space left.
            raise named(error, self.path) from None

    def commit(self) -> None:
        os.rename(self._temporary, self.path)
        sync_folder(os.path.dirname(self.path))

    def abort(self) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def writer_tag() -> str:
    """A name for this thread, unique among all processes and nodes that see the same folder."""
    return f"{os.uname().nodename}-{os.getpid()}-{get_ident()}"


def hidden(path: str, tag: str) -> str:
    """A file's temporary name: in the same folder, because a rename across Lustre's metadata targets is slow."""
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.{tag}.tmp"


def sync_folder(folder: str) -> None:
    """Make renames within a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: str, mode: int = 0o777) -> None:
    """Create a folder and its parents. Raises StaggerError with the reason when that is impossible."""
    try:
        os.makedirs(folder, mode, exist_ok=True)
    except OSError as error:
        raise StaggerError(f"The folder {folder} cannot be created: {error.strerror}.") from error
