"""One way to open a path: system calls for local and shared file systems, fsspec for everything else.

`Storage` takes any path and hands it to the right backend. It imports fsspec (and s3fs: 3000 file-system calls) at
the first remote path, never for a local one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from stagger.errors import StaggerError
from stagger.storage import S3_CONNECTIONS, Backend, Entry, Files, Output, RemoteBackend

if TYPE_CHECKING:
    from stagger.storage.retry import Retry

#: Seconds that an interactive command retries an endpoint that cannot be reached at all.
UNREACHABLE_S = 10.0

S3_PROTOCOLS = ("s3", "s3a")

#: The environment variables whose values this process has put in place of `${NAME}`, and the keys where. Messages leave
#: out those values that are secrets (stagger/secrecy.py).
RESOLVED: dict[str, set[tuple[str | int, ...]]] = {}


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def connections_to(path: str) -> int:
    """How many requests a task may have in flight at the storage of `path`. Other file systems of fsspec need not be
    safe to use from several threads.
    """
    return S3_CONNECTIONS if path.startswith(tuple(f"{protocol}://" for protocol in S3_PROTOCOLS)) else 1


def is_file(entry: Entry) -> bool:
    """Whether a listed entry is a file, not a folder marker: an object whose key ends with `/`."""
    return entry.name[-1:] not in ("", "/")


def join(folder: str, *names: str) -> str:
    """`names` appended to `folder`; an absolute path or a URL among them replaces everything before it."""
    path = folder
    for name in names:
        path = name if name.startswith("/") or "://" in name else f"{path.rstrip('/')}/{name}"
    return path


#: Protocols whose paths are never local ones.
REMOTE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https", "hdfs")


def absolute(path: str) -> str:
    """`path` in a form that works on other nodes: `~` expanded, relative paths resolved from the current folder.

    Raises StaggerError when `path` is empty or ends with a colon, or when a slash of `s3://` is missing.
    """
    protocol, colon, rest = path.partition(":/")
    if colon and protocol in REMOTE and not rest.startswith("/"):
        raise StaggerError(f"{path!r} is not a path; write {protocol}://{rest}")
    if not path.strip() or path.rstrip("/").endswith(":"):
        raise StaggerError(f"{path!r} is not a path; write a folder, or s3://bucket/folder.")
    if is_local(path):
        return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    return path.rstrip("/")


class Storage:
    """Reads and writes any path. `options` holds keyword arguments for fsspec, per protocol: `{"s3": {...}}`.

    A value `${NAME}` in the options is replaced from the environment at the protocol's first use, so secrets never
    have to be stored. Transient errors of a remote store are retried for `retry_s` seconds (`unreachable_s` when the
    endpoint cannot be reached at all). During each wait `check` runs, and may raise; `tell` gets one message per wait.
    With `shared`, local records are written for the group that shares the run.
    """

    def __init__(
        self,
        options: dict[str, dict[str, Any]] | None = None,
        *,
        retry_s: float = 600.0,
        unreachable_s: float | None = None,
        tell: Callable[[str], None] | None = None,
        shared: bool = False,
    ) -> None:
        self.options = options or {}
        self.shared = shared
        self.retry_s = retry_s
        self.check: Callable[[], None] = lambda: None
        self._unreachable_s = unreachable_s
        self._tell = tell
        self._retry: Retry | None = None
        self._backends: dict[str, Backend] = {}

    def backend(self, path: str) -> Backend:
        protocol = "file" if is_local(path) else path.partition("://")[0]
        if protocol not in self._backends:
            self._backends[protocol] = self._connect(protocol)
        return self._backends[protocol]

    def _connect(self, protocol: str) -> Backend:
        if protocol == "file":
            from stagger.storage.local_files import LocalFiles

            return LocalFiles(self.shared)
        options = self.expanded_options(protocol)
        if protocol in S3_PROTOCOLS:
            from stagger.storage.s3.store import S3

            return S3(options, self.retry)
        from stagger.storage.fsspec_store import ObjectStore

        return ObjectStore(protocol, options, self.retry)

    def expanded_options(self, protocol: str) -> dict[str, Any]:
        """The options of a protocol, with the values of variables."""
        return cast("dict[str, Any]", expand_variables(self.options.get(protocol, {}), ("storage_options", protocol)))

    @property
    def retry(self) -> Retry:
        """The retry policy of all remote stores, created at first use."""
        if self._retry is None:
            from stagger.storage.retry import Retry

            self._retry = Retry(self.retry_s, self._unreachable_s, check=lambda: self.check(), tell=self._tell)
        return self._retry

    def libraries(self) -> dict[str, str]:
        """What makes the requests to each remote protocol that has been used."""
        return {name: cast("RemoteBackend", one).library for name, one in self._backends.items() if name != "file"}

    def retried(self) -> dict[str, Any]:
        """Retried requests by kind of fault, and the seconds spent waiting, both since the last call of this."""
        return {"requests": {}, "waited_s": 0.0} if self._retry is None else self._retry.take_account()

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return self.backend(path).read(path)

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of the file, in one request; fewer if the file is shorter."""
        return self.backend(path).read_range(path, start, end)

    def read_many(self, paths: list[str]) -> list[bytes | None]:
        """Contents of many small files of one backend, read concurrently where that helps; None for a missing file."""
        return self.backend(paths[0]).read_many(paths) if paths else []

    def read_identified(self, paths: list[str]) -> tuple[list[bytes | None], list[int]]:
        """The same, and what identifies the content of each, as `identities` does; 0 if nothing does, or unknown."""
        if paths and is_local(paths[0]):
            from stagger.storage.local_files import read_identified

            return read_identified(paths)
        return self.read_many(paths), [0] * len(paths)

    def write(self, path: str, data: bytes, *, private: bool = False) -> None:
        """Write a whole file atomically and durably. `private` makes it readable by its owner only."""
        self.backend(path).write(path, data, private=private)

    def create(self, path: str, data: bytes) -> bool:
        """Create a file; False if it exists already. Of several concurrent callers, exactly one gets True."""
        return self.backend(path).create(path, data)

    def remove(self, path: str, version: str = "") -> None:
        """Remove a file; no error if there is none. With an `Output.version`, remove nothing but this very file."""
        self.backend(path).remove(path, version)

    def revoke(self, path: str, pending: str) -> None:
        """Make the commit of another process's output impossible, if it has not happened yet.

        `path` and `pending` are those of the finished `Output`.
        """
        self.backend(path).revoke(path, pending)

    def settle(self, paths: list[str]) -> None:
        """Make files that were committed to `paths` survive a power failure."""
        if folders := {os.path.dirname(path) for path in paths if is_local(path)}:
            from stagger.storage.local_files import sync_folder

            for folder in folders:
                sync_folder(folder)

    def named(self, folder: str, start: str) -> list[str]:
        """Files whose path relative to `folder` starts with `start`; they lie in the folder before its last `/`."""
        return self.backend(folder).named(folder, start)

    def entries(self, paths: list[str]) -> list[Entry | None]:
        """Size and version of many files, with concurrent requests on remote storage; None for a missing file."""
        if not paths or is_local(paths[0]):
            return [self.entry(path) for path in paths]
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(32) as threads:
            return list(threads.map(self.entry, paths))

    def listed(self, folder: str, *, recursive: bool) -> Iterator[Files]:
        """The files in a folder or, with `recursive`, below it, and its folder markers: many at a time, in columns.

        In no particular order, but for those that come together.
        """
        return self.backend(folder).listed(folder, recursive=recursive)

    def identities(self, folder: str) -> dict[str, int]:
        """The files directly in a folder, and what identifies the content of each: a number of 64 bits, never 0.

        Files for which nothing does are left out. Costs a listing, and on a local path a look at each file.
        """
        if is_local(folder):
            from stagger.storage.local_files import identities

            return identities(folder)
        files = (entry for entries in self.listed(folder, recursive=False) for entry in entries.entries())
        return {entry.name: _digest(f"{entry.size}-{entry.version}") for entry in files if entry.version}

    def list(self, folder: str) -> list[Entry]:
        """The files directly in a folder, sorted; empty if the folder does not exist."""
        return sorted(self._entries(folder, recursive=False))

    def walk(self, folder: str) -> Iterator[Entry]:
        """Every file below a folder, in no particular order."""
        return self._entries(folder, recursive=True)

    def _entries(self, folder: str, *, recursive: bool) -> Iterator[Entry]:
        for files in self.listed(folder, recursive=recursive):
            yield from filter(is_file, files.entries())

    def entry(self, path: str) -> Entry | None:
        """A file's size and version; None if there is no such file."""
        return self.backend(path).entry(path)

    def stream(self, path: str, size: int, version: str = "") -> Iterator[bytes]:
        """The content of a file of known `size` in bytes, in pieces of about 1 MiB, with a single request.

        Raises FileNotFoundError, and `BadInput` when the file's version is not `version`. The content may still turn
        out longer or shorter than `size`.
        """
        return self.backend(path).stream(path, size, version)

    def fill(self, path: str, file: Entry, start: int, into: memoryview, waiting: Callable[[], None]) -> None:
        """Read the bytes of a listed file from `start` on into all of `into`. Several threads may do so at once.

        Raises FileNotFoundError, `BadInput` when the file is another or has become shorter, and what `waiting` raises
        while a retry is waited for.
        """
        if is_local(path):
            from stagger.storage.local_files import fill

            fill(path, file, start, into)
            return
        at = 0
        span = (start, start + len(into))
        for piece in self.remote(path).stream_part(path, file.size, file.version, span, waiting):
            into[at : at + len(piece)] = piece
            at += len(piece)

    def remote(self, path: str) -> RemoteBackend:
        """The backend of a path that is not local."""
        return cast("RemoteBackend", self.backend(path))

    def output(
        self, path: str, tag: str, begin: Callable[[str], None] = lambda path: None, *, record: bool = False
    ) -> Output:
        """A new file that appears under `path` when it is committed. `remove_leftovers` finds it by its `tag`.

        `record` gives it the access mode of the run directory's records.
        `begin` is called with the path before a multipart upload starts. If this process is killed afterwards, the
        upload stays in the store, invisible: `remove_leftovers` does not find it, `abort_uploads` does.
        """
        return self.backend(path).output(path, tag, begin, record=record)

    def draft(self, path: str, tag: str) -> Output:
        """A new local file that is written under the name `pending` by other means than `write`, until `finish`."""
        from stagger.storage.local_files import LocalFiles

        return LocalFiles(self.shared).draft(path, tag)

    def abort_uploads(self, path: str) -> int:
        """Abort all unfinished uploads of `path`. Returns their number."""
        return self.backend(path).abort_uploads(path)

    def make_folder(self, folder: str) -> None:
        """Make a folder that files can be written to. Raises StaggerError when that is impossible."""
        self.backend(folder).make_folder(folder)

    def remove_leftovers(self, folder: str, tag: str) -> None:
        """Remove temporary files that dead writers left below `folder`: `output`s whose tag starts with `tag`."""
        self.backend(folder).remove_leftovers(folder, tag)

    def check_writable(self, folder: str) -> None:
        """Raise StaggerError when files cannot be written below `folder`. Changes nothing."""
        self.backend(folder).check_writable(folder)


def _digest(text: str) -> int:
    """64 bits, in which different texts differ. (Python's hash of a text differs in each process.)"""
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def expand_variables(value: object, path: tuple[str | int, ...] = ()) -> object:
    """`value` with every `${NAME}` in its strings replaced from the environment; `$${` stands for a literal `${`.

    `path` is the place of `value` in the pipeline file. Raises StaggerError, naming the key, for a variable that is not
    set, and for a `${` without a name and its `}`.
    """
    if isinstance(value, Mapping):
        return {key: expand_variables(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, (*path, index)) for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    head, *rest = value.split("${")
    text = head
    for part in rest:
        if text.endswith("$"):
            text = f"{text[:-1]}${{{part}"
            continue
        name, brace, after = part.partition("}")
        if not brace:
            raise StaggerError(f"{key_text(path)}a '${{' without its '}}'; write $${{ for a plain ${{.")
        if not name.isidentifier():
            raise StaggerError(
                f"{key_text(path)}between '${{' and '}}' there must be the name of a variable alone; write $${{ for a"
                " plain ${."
            )
        text += variable(name, path) + after
    return text


def variable(name: str, path: tuple[str | int, ...]) -> str:
    """The value of the environment variable `name`, for the key at `path`. Raises StaggerError when it is not set."""
    value = os.environ.get(name)
    if value is None and name == "STAGGER_EXAMPLES":
        from stagger.shipped import shipped

        value = str(shipped("examples"))
    if value is None:
        plain = (
            "" if name.isupper() else f" For a plain ${{{name}}}, which the step itself replaces, write $${{{name}}}."
        )
        raise StaggerError(f"{key_text(path)}The environment variable {name} is not set; export it and retry.{plain}")
    RESOLVED.setdefault(name, set()).add(path)
    return value


def without_secrets(text: str) -> str:
    """The message without secrets that `${NAME}` stood for in this process, and without credentials in URLs."""
    from stagger.storage.secrecy import redacted, secret_values

    return redacted(text, secret_values(RESOLVED))


def hide_secrets(record: Any) -> None:
    """Take the secrets out of a message of loguru: a `patcher`."""
    record["message"] = without_secrets(record["message"])


def key_text(path: tuple[str | int, ...]) -> str:
    """The start of a message about the key at `path`: `storage_options.s3.secret: `; empty without a path."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{text}: " if text else ""
