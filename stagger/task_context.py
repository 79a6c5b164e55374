"""What a step may know of the task it runs in, beyond the contract `(data, rank, world_size)`."""

from __future__ import annotations

import time

from stagger.errors import StaggerError
from stagger.formats import Codec, Compressor, compressor
from stagger.sharding import Shard
from stagger.storage import Output, Storage

#: Compressing many small records one by one costs a call each; this many bytes are gathered first.
GATHER_BYTES = 64 * 2**10


class OutputFile:
    """One output of a rank: whole under its final path once the whole rank has succeeded, otherwise never there."""

    def __init__(self, output: Output, codec: Codec | None, level: int | None) -> None:
        self.output = output
        self.records = 0
        self._compressor: Compressor | None = compressor(codec, level) if codec else None
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    def write(self, data: bytes) -> None:
        """Append one record."""
        self.records += 1
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= GATHER_BYTES:
            self._spill()

    def _spill(self) -> None:
        data = b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        self.output.write(self._compressor.compress(data) if self._compressor else data)

    def finish(self) -> None:
        """End the compressed stream and make the file durable, still invisible."""
        self._spill()
        if self._compressor:
            self.output.write(self._compressor.flush())
        self.output.finish()


class TaskContext:
    """The rank's shards, its outputs and the storage.

    A step that has a method `bind(task)` is handed it before it is called.

    Steps that stay with the contract need nothing of this.
    """

    def __init__(self, storage: Storage, rank: int, world_size: int, shards: list[Shard], tag: str) -> None:
        self.storage = storage
        self.rank = rank
        self.world_size = world_size
        self.shards = shards
        self.outputs: list[OutputFile] = []
        self.first_read: float | None = None
        self._tag = tag

    def mark_read(self) -> None:
        """Note the time at which the task first asked for input."""
        if self.first_read is None:
            self.first_read = time.time()

    def open_output(self, path: str, codec: Codec | None = None, level: int | None = None) -> OutputFile:
        """A new output of this rank. It is committed with the rank's others when all steps have succeeded.

        Raises StaggerError for a path that the rank writes already.
        """
        if any(file.output.path == path for file in self.outputs):
            raise StaggerError(f"Two steps write {path}; give each its own path or filename.")
        file = OutputFile(self.storage.output(path, self._tag), codec, level)
        self.outputs.append(file)
        return file

    def commit(self) -> None:
        """Make all outputs durable, then visible."""
        for file in self.outputs:
            file.finish()
        for file in self.outputs:
            file.output.commit()

    def abort(self) -> None:
        """Drop all outputs; nothing of them stays."""
        for file in self.outputs:
            file.output.abort()
