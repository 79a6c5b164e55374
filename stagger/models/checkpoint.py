"""The weights of a model: a folder, local or remote, with config.json and safetensors files.

The headers are read once, and then the bytes of those tensors that are asked for, and few others.
"""

from __future__ import annotations

import hashlib
import mmap
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch

from stagger.errors import BadInput, StaggerError
from stagger.models import safetensors_header as safetensors
from stagger.models.model_folder import check_config, header, weight_files
from stagger.models.model_json import parsed
from stagger.models.safetensors_header import TensorPlace
from stagger.storage import MTIME, Entry
from stagger.storage.retry import GivenUp
from stagger.storage.storage import Storage, connections_to, is_local, join

#: Tensors with at most this many bytes between them are read by one request: at 90 MB/s a connection and 30 ms before
#: the first byte, a request costs as much as 2.7 MB.
GAP_BYTES = 64 * 2**10

#: A larger range is read in parts of this size, several at once. Each part of a local file opens it.
PART_BYTES = 8 * 2**20
LOCAL_PART_BYTES = 256 * 2**20

#: Threads that read local files: a shared file system gives one of them a part of its bandwidth only.
LOCAL_THREADS = 4


class Run(NamedTuple):
    """Neighbouring tensors of a file, which are read together."""

    file: str
    begin: int
    end: int
    names: tuple[str, ...]


class Checkpoint:
    """The tensors of a model's folder. Several threads may read at once.

    config: the content of config.json.
    tensors: each tensor's place, by its name in the files.
    fingerprint: SHA-256, in hexadecimal, of config.json and, for each weights file, of its name, size, header and
        version: the ETag of an object; of a local file the time of modification, in seconds. So it differs as soon as a
        file was written anew. Bytes of tensors are not read for it.
    bytes_read: of weights files, so far.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        files: Mapping[str, Entry],
        config: dict[str, Any],
        tensors: Mapping[str, TensorPlace],
        fingerprint: str,
        bytes_read: int,
        *,
        one_request: bool = False,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tensors = tensors
        self.fingerprint = fingerprint
        self.bytes_read = bytes_read
        self._storage = storage
        self._files = files
        self._connections = connections(folder, one_request)
        self._counting = threading.Lock()

    @classmethod
    def open(cls, storage: Storage, folder: str, *, one_request: bool = False) -> Checkpoint:
        """The checkpoint in a folder: one listing, config.json, the index if there is one, and the files' headers.

        `one_request`: of remote storage, one request is in flight at a time, as a limit of requests asks for.

        Raises StaggerError when it is none, not in a format that is read, or damaged.
        """
        files = {entry.name: entry for entry in storage.list(folder)}
        config_text = small_file(storage, folder, files, "config.json")
        config = parsed(join(folder, "config.json"), config_text)
        check_config(folder, config)
        names, index = weight_files(folder, files, lambda name: small_file(storage, folder, files, name))
        headers = in_threads(
            connections(folder, one_request), [partial(header, storage, folder, files[name]) for name in names]
        )
        tensors: dict[str, TensorPlace] = {}
        digest = hashlib.sha256(config_text)
        read = 0
        for name, (text, end, count) in zip(names, headers, strict=True):
            found = safetensors.places(join(folder, name), name, text, end, files[name].size)
            for tensor in sorted(found.keys() & tensors.keys()):
                raise StaggerError(
                    f"{folder}: the tensor {tensor} is in {tensors[tensor].file} and in {name}. Remove the file that"
                    " does not belong to the model."
                )
            tensors |= found
            digest.update(repr((name, files[name].size, stable_version(files[name]), text)).encode())
            read += count
        if index is not None:
            tensors = index.checked(folder, tensors)
        return cls(storage, folder, files, config, tensors, digest.hexdigest(), read, one_request=one_request)

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of these tensors in the files."""
        return sum(place.end - place.begin for place in map(self.tensors.__getitem__, names))

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """These tensors, on the host, as they are stored. They share memory with those read beside them.

        Raises StaggerError when a file has changed since the checkpoint was opened, or cannot be read.
        """
        runs = merged({name: self.tensors[name] for name in names})
        buffers = [mmap.mmap(-1, run.end - run.begin) for run in runs]
        size = LOCAL_PART_BYTES if is_local(self.folder) else PART_BYTES
        parts = [
            part for run, buffer in zip(runs, buffers, strict=True) for part in parts_of(run, memoryview(buffer), size)
        ]
        stop = threading.Event()
        in_threads(self._connections, [partial(self._fill, *part, stop) for part in parts])
        with self._counting:
            self.bytes_read += sum(map(len, buffers))
        return {
            name: view(buffer, run, self.tensors[name])
            for run, buffer in zip(runs, buffers, strict=True)
            for name in run.names
        }

    def _fill(self, file: str, begin: int, into: memoryview, stop: threading.Event) -> None:
        def waiting() -> None:
            if stop.is_set():
                raise GivenUp

        path = join(self.folder, file)
        try:
            waiting()
            self._storage.fill(path, self._files[file], begin, into, waiting)
        except (BadInput, FileNotFoundError) as error:
            stop.set()
            reason = error if isinstance(error, BadInput) else "it is gone"
            raise StaggerError(f"{path}: the model has changed while it was read ({reason}).") from None
        except BaseException:
            stop.set()
            raise


def small_file(storage: Storage, folder: str, files: Mapping[str, Entry], name: str) -> bytes:
    if name not in files:
        hint = "" if files else " The folder is empty, or does not exist."
        raise StaggerError(f"{folder}: there is no {name}; a model's folder has one beside its weights.{hint}")
    return storage.read(join(folder, name))


def stable_version(file: Entry) -> str:
    """The version as all nodes of a shared file system see it: in whole seconds."""
    if not file.version.startswith(MTIME):
        return file.version
    return str(int(file.version.removeprefix(MTIME)) // 10**9)


def merged(places: Mapping[str, TensorPlace]) -> list[Run]:
    """The ranges that hold these tensors, in the order of files and bytes."""
    runs: list[Run] = []
    for name, place in sorted(places.items(), key=lambda item: (item[1].file, item[1].begin)):
        last = runs[-1] if runs else None
        if last is not None and last.file == place.file and place.begin - last.end <= GAP_BYTES:
            runs[-1] = last._replace(end=max(last.end, place.end), names=(*last.names, name))
        else:
            runs.append(Run(place.file, place.begin, place.end, (name,)))
    return runs


def parts_of(run: Run, buffer: memoryview, size: int) -> list[tuple[str, int, memoryview]]:
    """File, first byte and memory of each part of a run, of at most `size` bytes."""
    return [(run.file, run.begin + at, buffer[at : at + size]) for at in range(0, run.end - run.begin, size)]


def view(buffer: mmap.mmap, run: Run, place: TensorPlace) -> torch.Tensor:
    """A tensor in the bytes of a run; a copy if it does not begin at a multiple of its elements' size there."""
    count = place.end - place.begin
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    tensor = torch.frombuffer(buffer, dtype=torch.uint8, count=count, offset=place.begin - run.begin)
    if (place.begin - run.begin) % place.dtype.itemsize:
        tensor = tensor.clone()
    return tensor.view(place.dtype).view(place.shape)


def connections(folder: str, one_request: bool) -> int:
    """How many reads below a folder are in flight at once: as many as its storage takes, or one at remote storage."""
    if is_local(folder):
        return LOCAL_THREADS
    return 1 if one_request else connections_to(folder)


def in_threads(most: int, jobs: list[Callable[[], Any]]) -> list[Any]:
    """The results of jobs, of which up to `most` run at once."""
    if len(jobs) < 2 or most < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(min(most, len(jobs))) as threads:
        return list(threads.map(lambda job: job(), jobs))
