"""Tasks that read many small shards with several requests in flight, against a store with a limit: measured, simulated.

The tasks are threads with the real read-ahead, and start at the delays of `spread`. Exit status 1 when a request is
rejected with a `backend_limit`, or the peak differs from the prediction by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from random import Random
from statistics import median
from typing import Any

from benchmarks.kit import measure
from stagger.pipeline import Shard
from stagger.pipeline.read_ahead import ReadAhead
from stagger.start.account import most_within
from stagger.start.delays import share_of_limit, window_for_limit
from stagger.start.herd import Herd, delays, simulate
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server, running

#: (tasks, shards of each, requests per second, window in seconds or None for that of the limit)
HERDS = ((10, 200, 200, None), (4, 300, 400, None), (20, 50, 150, None), (10, 200, 2000, 10))

SHARD_BYTES, LATENCY_S, READ_AHEAD, SEEDS = 5000, 0.05, 64 * 10**6, 5


def herd_of(tasks: int, shards: int, limit: float, window: int | None) -> Herd:
    share = share_of_limit(tasks, 1, limit) if window is None else 0.0
    window_s = math.ceil(window_for_limit(tasks, shards, limit)) if window is None else window
    return Herd(tasks, "spread", window_s, shards, limit, latency_s=LATENCY_S, connections=32, share=share)


def run(server: S3Server, herd: Herd) -> dict[str, Any]:
    """Run the tasks of a herd. Returns what the store has counted."""
    storage = Storage({"s3": {"engine": "obstore"}})
    storage.write("s3://data/shard", os.urandom(SHARD_BYTES))
    entry = storage.entry("s3://data/shard")
    assert entry is not None
    shard = Shard("s3://data/shard", entry.size, entry.version)

    def task(delay: float) -> None:
        own = Storage({"s3": {"engine": "obstore"}})
        time.sleep(delay)
        reader = ReadAhead(
            own, [shard] * herd.requests, lambda shard: shard.name, lambda: READ_AHEAD, READ_AHEAD, herd.share
        )
        for index in range(herd.requests):
            assert sum(map(len, reader.shard(index))) == SHARD_BYTES

    server.reset()
    server.set_faults(rate=herd.limit, latency=LATENCY_S)
    threads = [threading.Thread(target=task, args=(delay,)) for delay in delays(herd, Random(0))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = server.stats()
    server.set_faults()
    refused = stats["statuses"].get("503", 0)
    return {"peak_1s": stats["peak_1s"], "refused": refused, "ended_s": round(time.monotonic() - began, 1)}


def compare(server: S3Server, herd: Herd) -> dict[str, Any]:
    outcomes = [simulate(herd, seed) for seed in range(SEEDS)]
    predicted = {
        "peak_1s": median(most_within(outcome.requests, 1.0) for outcome in outcomes),
        "refused": median(outcome.refused for outcome in outcomes),
        "ended_s": round(median(outcome.last_start_s for outcome in outcomes), 1),
    }
    found = {"herd": vars(herd), "measured": run(server, herd), "predicted": predicted}
    measure.say(json.dumps(found))
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with running("--bucket", "data") as server:
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint
        results = [compare(server, herd_of(*herd)) for herd in HERDS]
    requirements = []
    for result in results:
        herd, measured, predicted = result["herd"], result["measured"], result["predicted"]
        what = f"{herd['jobs']} tasks of {herd['requests']} shards, {herd['limit']} requests/s"
        off = round(abs(measured["peak_1s"] / predicted["peak_1s"] - 1), 3)
        requirements.append(measure.requirement(f"{what}: the peak differs from the prediction by", off, 0.15))
        requirements.append(measure.requirement(f"{what}: rejected requests", measured["refused"], 0))
    return measure.report(options, {"herds": results}, requirements)


if __name__ == "__main__":
    sys.exit(main())
