"""Listing and planning a million keys on an S3 server with latency: stagger, and other clients beside it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

from benchmarks.kit import measure
from benchmarks.kit.planned import planned
from tests.kit.s3_server import S3Server, running

#: For a million keys.
CPU_LIMIT_S = 5.0
WALL_LIMIT_S = 8.0
PLAN_CPU_LIMIT_S, BY_SHARD_CPU_LIMIT_S = 6.0, 12.0

#: Requests for each that a listing page after page makes.
REQUESTS_LIMIT = 1.25

#: Peak memory of a plan of any number of keys.
PLAN_PEAK_LIMIT_MB = 2000.0

#: Folders of the layout that has folders.
FOLDERS = 20

#: What stagger lists.
LISTINGS: dict[str, dict[str, Any]] = {
    "flat": {"folder": "s3://data/flat", "recursive": False},
    "flat, recursive": {"folder": "s3://data/flat", "recursive": True},
    f"{FOLDERS} folders": {"folder": "s3://data/deep", "recursive": True},
}

#: What stagger plans: the division, and the names of the outputs.
PLANS: dict[str, dict[str, Any]] = {
    "plan": {"shard_by": "count"},
    "plan, by bytes": {"shard_by": "bytes"},
    "plan, an output for each shard": {"shard_by": "count", "filename": "{stem}.jsonl"},
}


def stagger(folder: str, recursive: bool) -> dict[str, Any]:
    """List with stagger, as a launch does."""
    from stagger.storage.storage import Storage

    return counted(Storage().listed(folder, recursive=recursive))


def counted(parts: Any) -> dict[str, Any]:
    keys = sized = 0
    for files in parts:
        keys += len(files.names)
        sized += sum(1 for size, version in zip(files.sizes, files.versions, strict=True) if size and version)
    return {"keys": keys, "sized": sized}


def plan(folder: str, **stage: Any) -> dict[str, Any]:
    """List and plan with stagger, as a launch does before it submits."""
    found = planned({"path": folder, "recursive": True}, **stage)
    return {"keys": found["shards"], "plan_bytes": found["bytes"], "phases_cpu_s": found["phases"]}


def objects(folder: str) -> dict[str, Any]:
    """obstore's own listing: page after page, without checks."""
    import obstore
    from obstore.store import S3Store

    parts = urlsplit(folder)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(parts.netloc, endpoint=endpoint, client_options={"allow_http": True})
    found = [entry for page in obstore.list(store, parts.path.strip("/") + "/", chunk_size=1000) for entry in page]
    return {"keys": len(found)}


def botocore(folder: str) -> dict[str, Any]:
    """botocore's paginator, which boto3 uses."""
    from botocore.session import get_session

    parts = urlsplit(folder)
    pages = get_session().create_client("s3").get_paginator("list_objects_v2")
    found = pages.paginate(Bucket=parts.netloc, Prefix=parts.path.strip("/") + "/")
    return {"keys": sum(len(page.get("Contents", ())) for page in found)}


def raw(folder: str) -> dict[str, Any]:
    """The standard library alone, page after page, without checks: a bound for the CPU of one page."""
    import re
    from http.client import HTTPConnection
    from urllib.parse import quote

    parts = urlsplit(folder)
    connection = HTTPConnection(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc)
    row = re.compile(rb"<Key>([^<]*)</Key>.*?<ETag>([^<]*)</ETag><Size>(\d+)</Size>")
    token = re.compile(rb"<NextContinuationToken>([^<]*)<")
    found: list[Any] = []
    query = f"list-type=2&prefix={quote(parts.path.strip('/') + '/')}"
    more = ""
    while True:
        connection.request("GET", f"/{parts.netloc}?{query}{more}")
        body = connection.getresponse().read()
        found += row.findall(body)
        following = token.search(body)
        if following is None:
            return {"keys": len(found)}
        more = f"&continuation-token={quote(following[1].decode(), safe='')}"


def s5cmd(folder: str) -> tuple[dict[str, Any], measure.Cost]:
    command = ["s5cmd", "--endpoint-url", os.environ["AWS_ENDPOINT_URL"], "ls", f"{folder}/*"]
    output, cost = measure.run(command)
    return {"keys": output.count("\n")}, cost


#: Who lists the same keys.
PEERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "stagger": (stagger, {"recursive": False}),
    "obstore": (objects, {}),
    "botocore": (botocore, {}),
    "raw": (raw, {}),
    "s5cmd": (s5cmd, {}),
}


def measured(server: S3Server, call: Any, repeat: int, **arguments: Any) -> dict[str, Any]:
    """The cost of several runs, and the requests of the last."""
    runs = []
    for _ in range(repeat):
        server.reset()
        started = time.perf_counter()
        result, cost = call(**arguments) if call is s5cmd else measure.fresh(call, **arguments)
        runs.append(cost)
        measure.say(f"{call.__name__} {arguments}: {cost.cpu_s:.1f} CPU s, {time.perf_counter() - started:.1f} s")
    requests = server.stats()["requests"].get("ListObjectsV2", 0)
    return {**result, "requests": requests, **measure.costs(runs)}


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=3)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys of the flat folder, and of all folders")
    parser.add_argument("--peer-keys", type=int, default=200_000, help="keys that the other clients list")
    names = [*LISTINGS, *PLANS, *(f"peer {name}" for name in PEERS)]
    parser.add_argument("--only", choices=names, help="measure this alone")
    parser.add_argument("--latency", type=float, default=0.03, help="seconds of each request")
    parser.add_argument("--tasks", type=int, default=8000, help="ranks of the plan")
    options = parser.parse_args()
    each = options.keys // FOLDERS
    layouts = [(f"data/deep/segment-{folder:03d}/part-", each) for folder in range(FOLDERS)]
    layouts += [("data/flat/part-", options.keys), ("data/peers/part-", options.peer_keys)]
    series = [text for path, count in layouts for text in ("--series", f"{path}:{count}:1000")]
    results: dict[str, Any] = {}
    with running(*series, "--latency", options.latency) as server, tempfile.TemporaryDirectory() as work:
        os.environ.update(credentials(server))
        stage = {"run_dir": work, "tasks": options.tasks}
        for name, (call, arguments) in {
            **{name: (stagger, arguments) for name, arguments in LISTINGS.items()},
            **{name: (plan, {"folder": "s3://data/flat", **stage, **more}) for name, more in PLANS.items()},
            **{f"peer {name}": (each, {"folder": "s3://data/peers", **more}) for name, (each, more) in PEERS.items()},
        }.items():
            if options.only not in (None, name):
                continue
            if call is s5cmd and not shutil.which("s5cmd"):
                results[name] = {"skipped": "not installed"}
            else:
                results[name] = measured(server, call, options.repeat, **arguments)
    return measure.report(options, with_ratios(results, options.peer_keys), requirements(results, options.keys))


def credentials(server: S3Server) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    return {**keys, "AWS_ENDPOINT_URL": server.endpoint}


def with_ratios(results: dict[str, Any], keys: int) -> dict[str, Any]:
    """The results, with the peers' CPU per key as a multiple of stagger's for as many keys."""
    own: dict[str, Any] = results.get("peer stagger", {})
    for name, found in results.items() if own else ():
        if name.startswith("peer ") and "cpu_s" in found:
            found["cpu_us_per_key"] = round(found["cpu_s"]["median"] / keys * 1e6, 2)
            for what in ("cpu_s", "wall_s"):
                found[f"{what}_of_stagger"] = round(found[what]["median"] / own[what]["median"], 2)
    return results


def requirements(results: dict[str, Any], keys: int) -> list[dict[str, Any]]:
    found = []
    millions = keys / 1e6
    for name in results.keys() & LISTINGS.keys():
        each = results[name]
        found += [
            measure.at_least(f"keys, {name}", min(each["keys"], each["sized"]), keys),
            measure.requirement(f"CPU s, {name}", each["cpu_s"]["median"], CPU_LIMIT_S * millions),
            measure.requirement(f"wall s, {name}", each["wall_s"]["median"], WALL_LIMIT_S * millions),
            measure.requirement(f"requests, {name}", each["requests"], keys / 1000 * REQUESTS_LIMIT + 1),
        ]
    for name in results.keys() & PLANS.keys():
        each = results[name]
        limit = BY_SHARD_CPU_LIMIT_S if "filename" in PLANS[name] else PLAN_CPU_LIMIT_S
        found += [
            measure.at_least(f"keys, {name}", each["keys"], keys),
            measure.requirement(f"CPU s, {name}", each["cpu_s"]["median"], limit * millions),
            measure.requirement(f"peak MB, {name}", each["peak_mb"]["median"], PLAN_PEAK_LIMIT_MB),
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())
