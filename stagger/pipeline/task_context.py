"""What a step can learn of its task beyond the contract `(data, rank, world_size)`."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline import Shard, count
from stagger.pipeline.compression import QUEUE_BYTES, THREAD_BYTES, Codec, Compressor, compressor
from stagger.storage import Output
from stagger.storage.storage import Storage, is_local

if TYPE_CHECKING:
    from stagger.pipeline.codec_threads import CompressedBehind, CompressionThread
    from stagger.pipeline.read_ahead import ReadAhead
    from stagger.pipeline.spool import Spool

#: Bytes of small records gathered before one call of the compressor: a call per record would be slow.
GATHER_BYTES = 64 * 2**10

#: The same once a file has had THREAD_BYTES of them: a thread waits for Python's lock after each call. Without threads
#: as many are gathered, so that the file is the same.
GATHER_LATER_BYTES = 256 * 2**10

#: Maximum bad records kept in full in the completion record; all are counted.
EXAMPLES = 10


class OutputFile:
    """One output of a rank: complete under its final path once the whole rank has succeeded, else never visible."""

    def __init__(
        self,
        output: Output,
        codec: Codec | None,
        level: int | None,
        thread: Callable[[], CompressionThread | None] = lambda: None,
    ) -> None:
        self.output = output
        self.records = 0
        self.finished = False
        #: The number of the step, from 1 on, whose removed documents the file holds; 0 for any other file.
        self.removed_by = 0
        #: Whether the file is not part of the result, such as one of the documents that a filter removed.
        self.aside = False
        #: Called before the file ends, to write the format's last part (such as Parquet's footer).
        self.closing: Callable[[], None] | None = None
        self._codec = codec
        self._level = level
        self._compressor: Compressor | None = None  # Made for the first bytes: it takes memory.
        self._behind: CompressedBehind | None = None  # The compressor, once it works in the task's thread for that.
        self._thread = thread
        self._to_thread = THREAD_BYTES  # Bytes to compress before that.
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._enough = GATHER_BYTES

    def write(self, data: bytes) -> None:
        """Append one record."""
        self.records += 1
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= self._enough:
            self.spill()

    def append(self, data: bytes) -> None:
        """Append bytes that are not one record."""
        self.write(data)
        self.records -= 1

    @property
    def size(self) -> int:
        """Bytes of the file so far; for a compressed file, only those that have left the compressor.

        A file whose size is asked for is compressed without a thread, so that the size is the same each time.
        """
        self._to_thread = sys.maxsize
        if self._behind is not None:
            self.output.write(self._behind.caught_up())
        return self.output.size + (0 if self._codec else self._gathered_bytes)

    @property
    def waiting(self) -> int:
        """Bytes of records that wait for the compressor."""
        return self._gathered_bytes

    @property
    def held(self) -> int:
        """Bytes in memory."""
        return self.output.held + self._gathered_bytes + (self._behind.held if self._behind else 0)

    def pause(self) -> None:
        """Free the memory and the descriptor of the file. It goes on with the next record, in a new frame or member."""
        if self._compressor:
            self.output.write(self._compressor.flush())
            self._compressor = self._behind = None
        self.output.pause()

    def spill(self) -> None:
        """Pass the records that wait on to the compressor."""
        data = b"".join(self._gathered)
        self._gathered, self._gathered_bytes = [], 0
        if data and self._codec and self._compressor is None:
            self._compressor = compressor(self._codec, self._level)
        if self._compressor is not None:
            if self._to_thread <= 0 and self._behind is None and (thread := self._thread()) is not None:
                self._compressor = self._behind = thread.compressor(self._compressor)
            self._to_thread -= len(data)
            self._enough = GATHER_BYTES if self._to_thread > 0 else GATHER_LATER_BYTES
            data = self._compressor.compress(data)
        self.output.write(data)

    def finish(self) -> None:
        """End the compressed stream and make the file durable, but still invisible."""
        if self.finished:
            return
        if self.closing is not None:
            self.closing()
            self.closing = None
        self.spill()
        if self._codec and self._compressor is None and not self.output.size:
            self._compressor = compressor(self._codec, self._level)  # An empty file is a valid one, too.
        if self._compressor:
            self.output.write(self._compressor.flush())
        self._compressor = self._behind = None  # It holds memory, and a rank may write hundreds of files.
        self.output.finish()
        self.finished = True


class StopFlag:
    """Set by a signal handler and checked between records. A handler that raised could be swallowed by a step.

    `in_steps`: whether steps run now, which may be interrupted at any moment. `overdue`: whether the handler raises:
    the steps have not noticed the flag for too long (stopping.py). `record` and `leave` are called, in this order,
    before a process is ended whose steps do not return at all. `planned`: whether the rank has stopped itself and comes
    back, as often as it wants to.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.in_steps = False
        self.overdue = False
        self.planned = False
        self.record: Callable[[Interrupted], None] = lambda error: None
        self.leave: Callable[[Interrupted], None] = lambda error: None

    def check(self) -> None:
        """Raise Interrupted when a signal has asked the task to stop."""
        if self.signal is not None:
            raise Interrupted(self.signal)

    def clear(self) -> None:
        """Forget the signal, once it has been handled."""
        self.signal = None
        self.overdue = False


@dataclass(frozen=True)
class Circumstances:
    """Where a rank runs: its stage's folder, its attempt's name, its Slurm job or local process, and its stop flag.

    `run_dir` is the run's folder, and `stage` the stage's name. `users` are the stages that use its block servers.
    `uses` are the swarms that the stage uses: name -> the fields of `stagger.blocks.swarm_place.SwarmPlace`.
    `looking`: somebody waits for the first documents, and nothing is written.
    """

    stage_dir: str = ""
    attempt: str = "1"
    job: str = ""
    stop: StopFlag = field(default_factory=StopFlag)
    run_dir: str = ""
    uses: dict[str, dict[str, Any]] = field(default_factory=dict)
    stage: str = ""
    users: list[str] = field(default_factory=list)
    looking: bool = False


class TaskContext:
    """The rank's shards, its outputs and the storage.

    A step with a method `bind(task)` receives it before it is called (hooks.py). Other steps do not need it.

    `all_shards` are the rank's shards; `shards` are those to read now: all of them, or one after another if a writer
    names its outputs after them. `bad_records` counts skipped records by kind; `bad_examples` holds the first ones in
    full. `left_out` counts by reason the records that a reader leaves out, although they are not bad. The completion
    record keeps these counts, and everything that a step puts into `notes`. `cpus` is how many processors it has.
    """

    def __init__(
        self,
        storage: Storage,
        rank: int,
        world_size: int,
        shards: Sequence[Shard],
        tag: str,
        *,
        read_ahead_bytes: int = 64 * 10**6,
        request_share: float = 0.0,
        begin_upload: Callable[[str], None] = lambda path: None,
        cpus: int = 1,
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
        self.left_out: dict[str, int] = {}
        self.all_shards = shards
        self.circumstances = circumstances or Circumstances()
        self.notes: dict[str, Any] = {}
        #: Blocks of datatrove that steps have made in their calls, each with the counts of its step.
        self.made_blocks: list[tuple[dict[str, int], Any]] = []
        self._tag = tag
        self._read_ahead_bytes = read_ahead_bytes
        self._request_share = request_share
        self._begin_upload = begin_upload
        self.cpus = cpus
        self._compression: CompressionThread | None = None
        self._queue_bytes = 0  # Of the shard that is decompressed in a thread.
        self._ahead: ReadAhead | None = None
        self._place = 0
        self._output_paths: set[str] = set()
        self._committed = 0
        self._spool: Spool | None = None

    def shard_by_shard(self) -> Iterator[Shard]:
        """Iterate over the rank's shards; in each iteration, `shards` holds only the current one."""
        for shard in self.all_shards:
            self.shards = [shard]
            yield shard

    def stream(self, shard: Shard, path_of: Callable[[Shard], str]) -> Iterator[bytes]:
        """The stored bytes of one of the rank's shards. Call it in the order of the shards, once for each.

        Remote shards are fetched ahead (read_ahead.py), unless there is no read-ahead. Raises FileNotFoundError, and
        `BadInput` when the shard's version is not the planned one.
        """
        if self.first_read is None:
            self.first_read = time.time()
        path = path_of(shard)
        if is_local(path) or not self._read_ahead_bytes:
            return self.storage.stream(path, shard.size, shard.version)
        if self._ahead is None:
            from stagger.pipeline.read_ahead import ReadAhead

            self._ahead = ReadAhead(
                self.storage,
                self.all_shards,
                path_of,
                self._read_ahead_limit,
                self._read_ahead_bytes,
                self._request_share,
            )
        self._place = self.all_shards.index(shard, self._place)
        return self._ahead.shard(self._place)

    @property
    def limited(self) -> bool:
        """Whether the run has a limit of requests to remote storage, so that one is in flight at a time."""
        return self._request_share > 0

    @functools.cached_property
    def has_cpu_for_codecs(self) -> bool:
        """Whether codecs work in threads: the rank has a second processor, and this process may use it."""
        return self.cpus > 1 and len(os.sched_getaffinity(0)) > 1

    def decompresses_ahead(self, shard: Shard) -> bool:
        """Whether a compressed shard is decompressed in a thread. Asked before its first byte is."""
        ahead = shard.size >= THREAD_BYTES and self.has_cpu_for_codecs
        self._queue_bytes = QUEUE_BYTES if ahead else 0
        return ahead

    def _compression_thread(self) -> CompressionThread | None:
        """The thread that compresses the outputs; None where that is no task for a thread."""
        if self._compression is None and self.has_cpu_for_codecs:
            from stagger.pipeline.codec_threads import CompressionThread

            self._compression = CompressionThread()
        return self._compression

    def _read_ahead_limit(self) -> int:
        """Bytes of input that may wait in memory. Outputs waiting there reduce it, but to no less than an eighth."""
        held = sum(file.held for file in self.outputs[self._committed :])
        held += self._queue_bytes
        return max(self._read_ahead_bytes - held, self._read_ahead_bytes // 8)

    def skipped(self, shard: str, record: int, byte: int, kind: str, reason: str) -> int:
        """Count a skipped record; the first EXAMPLES are kept in full. Returns the rank's bad records so far."""
        self.bad_records[kind] = self.bad_records.get(kind, 0) + 1
        if len(self.bad_examples) < EXAMPLES:
            example = {"shard": shard, "record": record, "byte": byte, "kind": kind, "reason": reason}
            self.bad_examples.append(example)
        return sum(self.bad_records.values())

    def count(self, name: str, number: int = 1) -> None:
        """Count something in this rank, as the function `stagger.count` does."""
        count(name, number)

    def open_output(
        self, path: str, codec: Codec | None = None, level: int | None = None, *, one_of_many: bool = False
    ) -> OutputFile:
        """Open a new output of this rank. It is committed with the rank's other outputs when all steps have succeeded.

        On remote storage, one of many waits on this machine's disk, not in memory, until it is finished. Raises
        StaggerError when the rank already writes `path`.
        """
        self._claim_path(path)
        output = self.storage.output(path, self._tag, self._begin_upload)
        if one_of_many and not is_local(path):
            output = self._spooled(output)
        return self._add(OutputFile(output, codec, level, self._compression_thread))

    def open_draft(self, path: str) -> OutputFile:
        """Open a new local output that is not written with `write`, but as the file `output.pending`: it can be read
        back and overwritten until the rank ends. Raises StaggerError when the rank already writes `path`.
        """
        self._claim_path(path)
        return self._add(OutputFile(self.storage.draft(path, self._tag), None, None))

    def discard(self, file: OutputFile) -> None:
        """Remove an uncommitted output, as if it had never been opened."""
        file.output.abort()
        self.outputs.remove(file)
        self._output_paths.remove(file.output.path)

    def _claim_path(self, path: str) -> None:
        if path in self._output_paths:
            raise StaggerError(f"Two steps write {path}; give each its own path or filename.")
        self._output_paths.add(path)

    def _add(self, file: OutputFile) -> OutputFile:
        self.outputs.append(file)
        return file

    def _spooled(self, output: Output) -> Output:
        from stagger.pipeline.spool import Spool, SpooledOutput

        if self._spool is None:
            self._spool = Spool()
        return SpooledOutput(output, self._spool)

    def finish(self) -> list[Output]:
        """Make the outputs since the last commit durable, but still invisible. Returns them."""
        files = self.outputs[self._committed :]
        for file in files:
            file.finish()
        return [file.output for file in files]

    def committed(self) -> None:
        """Note that all outputs are visible: `abort` leaves them alone."""
        self._committed = len(self.outputs)

    def abort(self) -> None:
        """Discard all uncommitted outputs without a trace."""
        for file in self.outputs[self._committed :]:
            file.output.abort()
        self._committed = len(self.outputs)

    def close(self) -> None:
        """Stop fetching input and compressing output, and free what waits on the disk."""
        if self._compression is not None:
            self._compression.stop()
            self._compression = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
