"""What a step may know of the task it runs in, beyond the contract `(data, rank, world_size)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from signal import Signals
from typing import TYPE_CHECKING, Any

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline.compression import Codec, Compressor, compressor
from stagger.pipeline.document import Shard
from stagger.storage import Output
from stagger.storage.storage import Storage, is_local

if TYPE_CHECKING:
    from stagger.pipeline.read_ahead import ReadAhead

#: Compressing many small records one by one costs a call each; this many bytes are gathered first.
GATHER_BYTES = 64 * 2**10

#: So many bad records are kept in full in the completion record; all are counted.
EXAMPLES = 10


class OutputFile:
    """One output of a rank: whole under its final path once the whole rank has succeeded, otherwise never there."""

    def __init__(self, output: Output, codec: Codec | None, level: int | None) -> None:
        self.output = output
        self.records = 0
        self.finished = False
        #: Called before the file ends: what a format still has to write then.
        self.closing: Callable[[], None] | None = None
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

    @property
    def size(self) -> int:
        """Bytes of the file so far. Of a compressed one those that have left the compressor: the rest follow."""
        return self.output.size + (0 if self._compressor else self._gathered_bytes)

    def _spill(self) -> None:
        data = b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        self.output.write(self._compressor.compress(data) if self._compressor else data)

    def finish(self) -> None:
        """End the compressed stream and make the file durable, still invisible."""
        if self.finished:
            return
        if self.closing is not None:
            self.closing()
            self.closing = None
        self._spill()
        if self._compressor:
            self.output.write(self._compressor.flush())
        self._compressor = None  # It holds memory, and a rank may write hundreds of files.
        self.output.finish()
        self.finished = True


class StopFlag:
    """Set by a signal handler, looked at between records: a handler that raised could be swallowed by a step."""

    def __init__(self) -> None:
        self.signal: Signals | None = None

    def check(self) -> None:
        """Raise Interrupted when a signal has asked the task to stop."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def clear(self) -> None:
        """Forget the signal: it has been heeded."""
        self.signal = None


@dataclass(frozen=True)
class Circumstances:
    """Where a rank runs: its stage's folder, its attempt's name, its Slurm job or local process, what may stop it."""

    stage_dir: str = ""
    attempt: str = "1"
    job: str = ""
    stop: StopFlag = field(default_factory=StopFlag)


class TaskContext:
    """The rank's shards, its outputs and the storage.

    A step that has a method `bind(task)` is handed it before it is called (hooks.py). Steps that stay with the contract
    need nothing of this.

    `all_shards` are the rank's, `shards` what the steps are to read now: all of them, or one after another where a
    writer names its outputs after them. `bad_records` counts what readers skipped, by kind; `bad_examples` holds the
    first of them in full. What a step puts into `notes` is kept in the completion record.
    """

    def __init__(
        self,
        storage: Storage,
        rank: int,
        world_size: int,
        shards: list[Shard],
        tag: str,
        *,
        repeated: bool = False,
        read_ahead_bytes: int = 64 * 10**6,
        begin_upload: Callable[[str], None] = lambda path: None,
        circumstances: Circumstances | None = None,
    ) -> None:
        self.storage = storage
        self.rank = rank
        self.world_size = world_size
        self.shards = shards
        self.outputs: list[OutputFile] = []
        self.first_read: float | None = None
        self.bad_records: dict[str, int] = {}
        self.bad_examples: list[dict[str, Any]] = []
        self.all_shards = shards
        self.circumstances = circumstances or Circumstances()
        self.notes: dict[str, Any] = {}
        self._tag = tag
        self._repeated = repeated
        self._read_ahead_bytes = read_ahead_bytes
        self._begin_upload = begin_upload
        self._ahead: ReadAhead | None = None
        self._place = 0
        self._committed = 0
        self._earlier: list[Callable[[list[Shard]], list[str]]] = []

    def shard_by_shard(self) -> Iterator[Shard]:
        """Each shard of the rank, `shards` being that one alone meanwhile."""
        for shard in self.all_shards:
            self.shards = [shard]
            yield shard

    def stream(self, shard: Shard, path_of: Callable[[Shard], str]) -> Iterator[bytes]:
        """The bytes of one of the rank's shards, as they are stored. They are asked for in order, each once.

        Remote ones are fetched ahead of this, with one request each. Raises FileNotFoundError, and `BadInput` for a
        shard that is another version than planned.
        """
        if self.first_read is None:
            self.first_read = time.time()
        path = path_of(shard)
        if is_local(path):
            return self.storage.stream(path, shard.size, shard.version)
        if self._ahead is None:
            from stagger.pipeline.read_ahead import ReadAhead

            self._ahead = ReadAhead(self.storage, self.all_shards, path_of, self._read_ahead_limit)
        self._place = self.all_shards.index(shard, self._place)
        return self._ahead.shard(self._place)

    def _read_ahead_limit(self) -> int:
        """Input that may wait in memory: outputs that wait there too leave less of it."""
        held = sum(file.output.held for file in self.outputs)
        return max(self._read_ahead_bytes - held, self._read_ahead_bytes // 8)

    def skipped(self, shard: str, record: int, byte: int, kind: str, reason: str) -> int:
        """Note a bad record that is left out. Returns how many there are in this rank by now."""
        self.bad_records[kind] = self.bad_records.get(kind, 0) + 1
        if len(self.bad_examples) < EXAMPLES:
            example = {"shard": shard, "record": record, "byte": byte, "kind": kind, "reason": reason}
            self.bad_examples.append(example)
        return sum(self.bad_records.values())

    def open_output(self, path: str, codec: Codec | None = None, level: int | None = None) -> OutputFile:
        """A new output of this rank. It is committed with the rank's others when all steps have succeeded.

        Raises StaggerError for a path that the rank writes already.
        """
        if any(file.output.path == path for file in self.outputs):
            raise StaggerError(f"Two steps write {path}; give each its own path or filename.")
        file = OutputFile(self.storage.output(path, self._tag, self._begin_upload), codec, level)
        self.outputs.append(file)
        return file

    def replaces(self, earlier: Callable[[list[Shard]], list[str]]) -> None:
        """Have files removed, at the commit, that an earlier attempt of the rank wrote and this one did not.

        `earlier` finds the paths that the rank may have written for the shards it is given; it is called only when
        there was an earlier attempt.
        """
        self._earlier.append(earlier)

    def commit(self, shards: list[Shard]) -> None:
        """Make the outputs since the last commit durable, then visible; remove what earlier attempts wrote beside them.

        `shards` are those that the outputs are of.
        """
        files = self.outputs[self._committed :]
        for file in files:
            file.finish()
        committed: list[str] = []
        try:
            for file in files:
                file.output.commit()
                committed.append(file.output.path)
        except BaseException:
            for path in committed:  # The rank has failed: nothing of it is to be taken for data.
                self.storage.remove(path)
            raise
        self._committed = len(self.outputs)
        if self._repeated:
            written = {file.output.path for file in files}
            for path in {path for find in self._earlier for path in find(shards)} - written:
                self.storage.remove(path)

    def abort(self) -> None:
        """Drop all outputs that are not committed; nothing of them stays."""
        for file in self.outputs[self._committed :]:
            file.output.abort()
        self._committed = len(self.outputs)

    def close(self) -> None:
        """Stop fetching input."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
