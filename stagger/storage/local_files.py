"""The local or shared (Lustre, NFS) file system, by plain system calls."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter, itemgetter
from typing import BinaryIO

from stagger.errors import BadInput, StaggerError, counted
from stagger.storage import MTIME, Crc, Entry, Files

#: Bytes per read call: shared file systems favour large sequential reads.
READ_BYTES = 2**20

#: Bytes per call that reads into the reader's own memory: one call takes at most 2 GiB.
READ_AT_ONCE = 2**26

#: Most bytes of a file's name in its temporary name, which has another 100: file systems allow 255.
NAME_BYTES = 150

#: Files of a folder that are sorted at once: a larger folder comes in several parts.
LISTED_AT_ONCE = 2**20

#: Modes of records and their folders: others may read them if the run directory lets them, and never write.
RECORD, FOLDER = 0o644, 0o755

#: The same for a run that a group shares. Folders pass on the group (setgid), and the umask keeps others out.
SHARED_RECORD, SHARED_FOLDER, SHARED_UMASK = 0o660, 0o2770, 0o007

#: Seconds after which a file's time can be told from that of its next change: the coarsest resolution, doubled.
SETTLED_S = 2.0

#: Bytes that hold most records of a run directory.
SMALL_BYTES = 2**14


class LocalFiles:
    """A `Backend` over POSIX calls. A file is written aside, fsynced and renamed within its folder.

    `shared`: whether a group shares the records that are written.
    """

    def __init__(self, shared: bool = False) -> None:
        self.record_mode = SHARED_RECORD if shared else RECORD
        self.folder_mode = SHARED_FOLDER if shared else FOLDER

    def read(self, path: str) -> bytes:
        with open(path, "rb", opener=open_regular) as file:
            return file.read()

    def read_range(self, path: str, start: int, end: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, end - start, start)
        except OSError as error:
            raise named(error, path) from None
        finally:
            os.close(descriptor)

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        return read_identified(paths)[0]

    def write(self, path: str, data: bytes, *, private: bool) -> None:
        output = LocalOutput(path, str(os.getpid()), 0o600 if private else self.record_mode)
        try:
            output.write(data)
            output.finish()
        except BaseException:
            output.abort()
            raise
        output.commit(lambda: None, None)
        sync_folder(os.path.dirname(path))

    def create(self, path: str, data: bytes) -> bool:
        # Written aside and linked, so that nobody reads a half-written file. link() fails when the name is taken.
        output = LocalOutput(path, str(os.getpid()), self.record_mode)
        try:
            output.write(data)
            output.finish()
            os.link(output.pending, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost: the name may be taken by this very file.
            return os.stat(output.pending).st_nlink > 1
        finally:
            output.abort()
        return True

    def remove(self, path: str, version: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not version or identity_of(os.lstat(path)) == version:
                os.unlink(path)

    def revoke(self, path: str, pending: str) -> None:
        # A rename fails once its source is gone, whenever it comes.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pending)

    def named(self, folder: str, start: str) -> list[str]:
        below, _, name = start.rpartition("/")
        below = f"{below}/" if below else ""
        try:
            # Not list(): it needs each file's size, which costs one request per file on Lustre.
            with os.scandir(f"{folder}/{below}") as entries:
                return [below + entry.name for entry in entries if entry.name.startswith(name) and is_there(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        pending = [""]
        seen: set[tuple[int, int]] = set()
        while pending:
            below = pending.pop()
            folders: list[str] = []
            try:
                descriptor = os.open(f"{folder}/{below}", os.O_RDONLY | os.O_DIRECTORY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                info = os.fstat(descriptor)
                if (info.st_dev, info.st_ino) in seen:
                    raise StaggerError(
                        f"{folder}/{below} is a link to a folder that is listed already; remove the link."
                    )
                seen.add((info.st_dev, info.st_ino))
                with os.scandir(descriptor) as entries:  # The path of each file is not looked up again for its stat.
                    for files in files_in(entries, below, folders):
                        yield Files.of(sorted(files, key=itemgetter(0)))
            finally:
                os.close(descriptor)
            if recursive:
                pending += sorted(folders, reverse=True)

    def entry(self, path: str) -> Entry | None:
        try:
            info = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, info.st_size, version_of(info)) if stat.S_ISREG(info.st_mode) else None

    def stream(self, path: str, size: int, version: str) -> Iterator[bytes]:
        # Not open(): it queries the file's size. O_NONBLOCK: a named pipe at this path must not block the task.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            check_version(descriptor, size, version)
            while data := read_piece(descriptor, path):
                yield data
        finally:
            os.close(descriptor)

    def output(self, path: str, tag: str, begin: Callable[[str], None], *, record: bool) -> LocalOutput:
        return LocalOutput(path, tag, self.record_mode if record else 0o666)

    def draft(self, path: str, tag: str) -> LocalDraft:
        return LocalDraft(path, tag, 0o666)

    def abort_uploads(self, path: str) -> int:
        return 0

    def make_folder(self, folder: str) -> None:
        self.check_writable(folder)
        make_folder(folder)

    def remove_leftovers(self, folder: str, tag: str) -> None:
        for below, _, names in os.walk(folder):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp") and f".{tag}-" in name:
                    self.remove(f"{below}/{name}", "")

    def check_writable(self, folder: str) -> None:
        existing = folder
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise StaggerError(f"{folder} cannot be created: {existing} is not a folder. Choose another path.")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StaggerError(f"{folder} cannot be written: no permission in {existing}. Choose another path.")


def identities(folder: str) -> dict[str, int]:
    """The files in a folder, and what identifies the content of each; without files that changed just now."""
    latest, found = settled(), {}
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        with os.scandir(descriptor) as entries:  # The path of each file is not looked up again for its stat.
            for entry in entries:
                try:
                    if identity := identity_before(latest, entry.stat()):
                        found[entry.name] = identity
                except FileNotFoundError:  # Temporary files vanish.
                    continue
    finally:
        os.close(descriptor)
    return found


def settled() -> int:
    """The time, in nanoseconds, before which a file must have changed last so that its times identify its content.

    A later one could change once more within the resolution of its times, which is a second on some file systems.
    """
    return int((time.time() - SETTLED_S) * 10**9)


#: What tells a file's content from any other.
_of_content = attrgetter("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


def identity_before(latest: int, info: os.stat_result) -> int:
    """Identifies a file and its content, in 64 bits; 0 if it changed at the time `latest` or later.

    Python's hash of numbers is the same in each process.
    """
    return hash(_of_content(info)) if info.st_mtime_ns < latest > info.st_ctime_ns else 0


def files_in(
    entries: Iterator[os.DirEntry[str]], below: str, folders: list[str]
) -> Iterator[list[tuple[str, int, str]]]:
    """Name, size and version of each file among a folder's entries. A dangling link has size -1, to be noticed.

    A folder is added to `folders`, with a slash at its end.
    """
    found: list[tuple[str, int, str]] = []
    for entry in entries:
        if len(found) == LISTED_AT_ONCE:
            yield found
            found = []
        try:
            if entry.is_file():
                info = entry.stat()
                found.append((below + entry.name, info.st_size, f"{MTIME}{info.st_mtime_ns}"))
                continue
        except FileNotFoundError:
            pass  # It vanished before its stat, as temporary files do. The folder's other files must still be found.
        if entry.is_dir():
            folders.append(f"{below}{entry.name}/")
        elif entry.is_symlink():
            found.append((below + entry.name, -1, ""))
    yield found


def version_of(info: os.stat_result) -> str:
    return f"{MTIME}{info.st_mtime_ns}"


def check_version(descriptor: int, size: int, version: str) -> None:
    """Raise BadInput when the open file has the planned size, but not the planned time of modification."""
    if version and version_of(info := os.fstat(descriptor)) != version and info.st_size == size:
        raise BadInput(
            "the file has been replaced or modified since the plan was made; to read it as it is now, launch the run"
            " again"
        )


def fill(path: str, file: Entry, start: int, into: memoryview) -> None:
    """Read the bytes of a listed file from `start` on into all of `into`. Raises BadInput as `Storage.fill` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_version(descriptor, file.size, file.version)
        done = 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done : done + READ_AT_ONCE]], start + done)
            if not count:
                raise BadInput(f"the file ends after {counted(start + done, 'byte')}; it had {file.size:,}")
            done += count
    except OSError as error:
        raise named(error, path) from None
    finally:
        os.close(descriptor)


def open_version(path: str, size: int, version: str) -> BinaryIO:
    """Open a file, and check its version as `check_version` does."""
    file = open(path, "rb")  # noqa: SIM115 # Handed on.
    try:
        check_version(file.fileno(), size, version)
    except BaseException:
        file.close()
        raise
    return file


def is_there(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is a file or a dangling link, as in `files_in`."""
    return entry.is_file() or (entry.is_symlink() and not entry.is_dir())


def open_regular(path: str, flags: int) -> int:
    """An opener for files that another user may have put there: a named pipe must not block, nor a device never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        check_regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(info: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise StaggerError(f"{path} is not a regular file; remove it, or give another path.")


def named(error: OSError, path: str) -> OSError:
    """The error with the path: a call on a descriptor does not know it."""
    return type(error)(error.errno, error.strerror, path)


def read_piece(descriptor: int, path: str) -> bytes:
    """The next READ_BYTES of an open file; empty at its end."""
    try:
        return os.read(descriptor, READ_BYTES)
    except OSError as error:
        raise named(error, path) from None


def read_identified(paths: list[str]) -> tuple[list[bytes | None], list[int]]:
    """The contents of small files, None for a missing one, and what identifies each, as `identities` does, or 0.

    One loop with fewer system calls than open(): there may be 100,000. Raises StaggerError when one is not a regular
    file.
    """
    latest = settled()
    contents: list[bytes | None] = []
    found = []
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            contents.append(None)
            found.append(0)
            continue
        try:
            info = os.fstat(descriptor)  # Before it is read: what changes it meanwhile is noticed at the next look.
            check_regular(info, path)
            data = os.read(descriptor, SMALL_BYTES)
            if len(data) != info.st_size:
                data += b"".join(iter(partial(os.read, descriptor, READ_BYTES), b""))
        except OSError as error:
            raise named(error, path) from None
        finally:
            os.close(descriptor)
        contents.append(data)
        found.append(identity_before(latest, info))
    return contents, found


class LocalOutput:
    """A file written under a hidden temporary name in its final folder, then fsynced and renamed."""

    def __init__(self, path: str, tag: str, mode: int) -> None:
        self.path = path
        self.size = 0
        self.version = ""
        self.pending = hidden(path, tag)
        self._crc = Crc()
        try:
            self._descriptor = open_new(self.pending, mode)
        except FileNotFoundError:
            make_folder(os.path.dirname(path), mode | (mode & 0o444) >> 2)  # Who may read a file may enter its folder.
            self._descriptor = open_new(self.pending, mode)

    @property
    def digest(self) -> str:
        return str(self._crc)

    @property
    def held(self) -> int:
        return 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            self._go_on()
            while view:  # A disk that fills up takes part of the data first, and rejects the next call.
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise named(error, self.path) from None
        self.size += len(data)
        self._crc.add(data)
        return len(data)

    def pause(self) -> None:
        self._close()

    def _go_on(self) -> None:
        """Open the file again, if it is paused."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.pending, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    def finish(self) -> None:
        try:
            self._go_on()
            os.fsync(self._descriptor)
            self.version = identity_of(os.fstat(self._descriptor))
            self._close()
        except OSError as error:  # Some file systems notice only now that there is no space left.
            raise named(error, self.path) from None

    def commit(self, confirm: Callable[[], None], replaces: str | None) -> None:
        try:
            os.rename(self.pending, self.path)
        except FileNotFoundError:
            confirm()  # A later attempt has revoked this output.
            raise

    def withdraw(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if identity_of(os.lstat(self.path)) != self.version:
                return
            # Not unlink(): another writer may have replaced the file since. Whatever was there is moved, and looked at.
            os.rename(self.path, self.pending)
            if identity_of(os.lstat(self.pending)) == self.version:
                os.unlink(self.pending)
            else:
                os.rename(self.pending, self.path)

    def abort(self) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.pending)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalDraft(LocalOutput):
    """An output that others write, read back and write again, in any order, as the file `pending`, until `finish`."""

    def __init__(self, path: str, tag: str, mode: int) -> None:
        super().__init__(path, tag, mode)
        self._close()  # A step may have hundreds of them.

    def finish(self) -> None:
        self._descriptor = os.open(self.pending, os.O_RDONLY | os.O_NOFOLLOW)
        while data := read_piece(self._descriptor, self.path):
            self._crc.add(data)
            self.size += len(data)
        super().finish()


def is_hidden_output(name: str) -> bool:
    """Whether a file's name is one that `hidden` gave."""
    _, _, random = name.removesuffix(".tmp").rpartition("-")
    return name.startswith(".") and name.endswith(".tmp") and len(random) == 16 and not random.strip("0123456789abcdef")


def hidden(path: str, tag: str) -> str:
    """A new temporary name for a file, which nobody can guess.

    It lies in the same folder, because a rename across Lustre's metadata targets is slow.
    """
    folder, name = os.path.split(path)
    name = os.fsdecode(os.fsencode(name)[:NAME_BYTES])
    return f"{folder}/.{name}.{tag}-{os.urandom(8).hex()}.tmp"


def open_new(path: str, mode: int) -> int:
    """A descriptor of a new file. Never opens a file or link that somebody has put there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)


def identity_of(info: os.stat_result) -> str:
    """Identifies a file and its content, on every node of a shared file system.

    Whole seconds: of a file's time, not all nodes see the fractions.
    """
    return f"{info.st_ino}-{info.st_size}-{int(info.st_mtime)}"


def sync_folder(folder: str) -> None:
    """Make renames within a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: str, mode: int = 0o777) -> None:
    """Create a folder and its parents, which all may enter. Raises StaggerError with the reason when it cannot."""
    try:
        _make_folders(folder, mode)
    except OSError as error:
        raise StaggerError(f"The folder {folder} cannot be created: {error.strerror}.") from error


def _make_folders(folder: str, mode: int) -> None:
    try:
        try:
            os.mkdir(folder, mode)
        except FileNotFoundError:
            # Its parent may be there by now, made by another process. (/proc lets nobody create anything.)
            if not os.path.isdir(os.path.dirname(folder)):
                _make_folders(os.path.dirname(folder), mode | 0o055)
            os.mkdir(folder, mode)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise


def open_log(path: str, shared: bool = False) -> int:
    """Open a log to append to it. A new log is created exclusively.

    An existing one must be a regular file of this user, under one name only: another user may have put a link, a pipe
    or a file of somebody else in its place. Raises StaggerError for anything else.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(2):
        try:
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, SHARED_RECORD if shared else RECORD)
        except FileNotFoundError:
            make_folder(os.path.dirname(path), SHARED_FOLDER if shared else FOLDER)
        except FileExistsError:
            break
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)  # A pipe without a reader must not block the task.
    except OSError as error:
        raise StaggerError(f"The log {path} cannot be opened: {error.strerror}. Remove it.") from error
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
        os.close(descriptor)
        raise StaggerError(f"The log {path} is not a file of this attempt's user alone. Remove it.")
    return descriptor
