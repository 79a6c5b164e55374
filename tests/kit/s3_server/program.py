"""The S3 server as a program; the package's docstring shows its use."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import resource
import signal
import stat
from pathlib import Path

from tests.kit import s3_server as package
from tests.kit.s3_server.connection import Connection
from tests.kit.s3_server.faults import Settings
from tests.kit.s3_server.lies import LIES
from tests.kit.s3_server.series import Listing, Series
from tests.kit.s3_server.server import Server
from tests.kit.s3_server.store import Bucket


def parse_size(text: str) -> int:
    """Bytes from a number with an optional suffix K, M, G or T (KiB, MiB, GiB, TiB).

    >>> parse_size("64M"), parse_size("1000")
    (67108864, 1000)
    """
    exponent = " KMGT".find(text[-1])
    return int(text) if exponent < 0 else int(float(text[:-1]) * 1024**exponent)


def parse_objects(text: str) -> tuple[str, str, int, int]:
    """Bucket, prefix, count and size of BUCKET/PREFIX:COUNT:SIZE."""
    path, count, size = text.rsplit(":", 2)
    bucket, _, prefix = path.partition("/")
    return bucket, prefix, int(count), parse_size(size)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        f"python -m {package.__name__}",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0, help="0 chooses a free port")
    options.add_argument("--log", type=int, default=100_000, help="number of requests that the log holds")
    options.add_argument("--bucket", action="append", default=[], help="a bucket that exists from the start")
    options.add_argument("--virtual", action="append", default=[], metavar="BUCKET/PREFIX:COUNT:SIZE")
    options.add_argument("--series", action="append", default=[], metavar="BUCKET/PREFIX:COUNT:SIZE", help="list only")
    options.add_argument("--serve", action="append", default=[], metavar="BUCKET=DIR", help="serve a folder's files")
    faults = options.add_argument_group("faults", "off by default; see also PUT /_admin/faults")
    for name in ("rate", "burst", "latency", "jitter", "bandwidth", "p-503", "p-500", "p-reset", "p-truncate"):
        faults.add_argument(f"--{name}", type=float)
    faults.add_argument("--p-reset-put", type=float)
    faults.add_argument("--seed", type=int)
    faults.add_argument("--only", action="append", metavar="METHOD|KIND")
    faults.add_argument("--prefix", metavar="PREFIX", help="prefix of the keys that get faults")
    faults.add_argument("--deny", metavar="PREFIX", help="prefix of the keys that get 403")
    faults.add_argument("--require-auth", action="store_true", default=None)
    faults.add_argument("--lie", choices=sorted(LIES), help="false answers; lies.py describes them")
    faults.add_argument("--lies", type=int, help="number of false answers, after which true ones follow")
    return options


def prepare(server: Server, given: argparse.Namespace) -> None:
    for name in given.bucket:
        server.s3.buckets.setdefault(name, Bucket())
    for text in given.virtual:
        server.add_virtual(*parse_objects(text))
    series: dict[str, list[Series]] = {}
    for text in given.series:
        name, prefix, count, size = parse_objects(text)
        series.setdefault(name, []).append(Series(prefix, count, size))
    for name, several in series.items():
        server.s3.buckets.setdefault(name, Bucket())
        server.s3.listings[name] = Listing(several)
    for text in given.serve:
        bucket, _, folder = text.partition("=")
        server.s3.buckets.setdefault(bucket, Bucket()).add_folder(Path(folder))


async def serve(given: argparse.Namespace, settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    server = Server(loop.time, settings, given.log)
    prepare(server, given)
    gc.collect()
    gc.freeze()
    listener = await loop.create_server(lambda: Connection(server), given.host, given.port, backlog=4096)
    host, port = listener.sockets[0].getsockname()[:2]
    print(json.dumps({"endpoint": f"http://{host}:{port}", "port": port, "pid": os.getpid()}), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    await ended.wait()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    options = parser()
    given = options.parse_args()
    names = [known.name for known in dataclasses.fields(Settings)]
    try:
        settings = Settings.of({name: value for name in names if (value := getattr(given, name, None)) is not None})
    except ValueError as error:
        options.error(str(error))
    asyncio.run(serve(given, settings))
