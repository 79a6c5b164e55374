"""Block placement: servers that start at the same moment, and claim their blocks on a file system and on S3.

The servers are real processes. Their coverage (requests per second of the slowest block) is compared with the coverage
of the same servers when they join one at a time, and of servers that announce their choice without a claim.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from stagger.blocks.placement.petals import compute_throughputs
from stagger.blocks.server.registry import Registry
from stagger.storage.storage import Storage
from tests.kit.claimants import TOTAL, kinds, one_at_a_time, who_claimed
from tests.kit.s3_server import S3Server, running


def start_at_once(folder: str, options: dict[str, Any], servers: int, how: str) -> dict[str, float]:
    """Coverage, relative to servers joining one at a time, and the seconds until all servers had their blocks."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.kit.claimants", folder, json.dumps(options), str(servers), how]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=measure.ROOT)
    seconds = time.monotonic() - started
    if set(json.loads(ran.stdout)) != {0}:
        raise RuntimeError(f"servers failed: {ran.stdout}")
    storage = Storage(options)
    view = Registry(storage, folder, TOTAL).refresh()
    if len(view.members) != servers:
        raise RuntimeError(f"{len(view.members)} of {servers} servers are there")
    order = who_claimed(storage, folder, view.claim) or list(range(servers))
    coverage = float(compute_throughputs(view.spans(), TOTAL).min())
    alone = one_at_a_time(kinds(order))
    return {"ratio": 1.0 if coverage == alone else coverage / alone if alone else math.inf, "seconds": seconds}


@contextmanager
def places(options: Any) -> Iterator[dict[str, tuple[str, dict[str, Any], S3Server | None]]]:
    """Places for registries: folder, storage options, and the S3 server that counts requests, None on a disk."""
    with (
        tempfile.TemporaryDirectory(prefix="stagger-claims-", dir=options.folder) as work,
        running("--bucket", "swarm") as server,
    ):
        keys = {"endpoint_url": server.endpoint, "key": "key", "secret": "secret", "engine": "obstore"}
        yield {
            "file system": (str(Path(work, "registry")), {}, None),
            "S3": ("s3://swarm/registry", {"s3": keys}, server),
        }


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=20)
    parser.add_argument("--servers", type=int, default=64, help="processes that start at once")
    options = parser.parse_args()
    room = sum(blocks for blocks, _ in kinds(range(options.servers)).values())
    if room < TOTAL:
        parser.error(f"--servers {options.servers}: they have room for {room} blocks, and the model has {TOTAL}")
    results: dict[str, Any] = {}
    requirements = []
    with places(options) as found:
        for place, (folder, storage_options, server) in found.items():
            for how in ("whole", "unclaimed"):
                runs = []
                requests = []
                for run in range(options.repeat):
                    if server is not None:
                        server.reset()
                    runs.append(start_at_once(f"{folder}-{how}-{run}", storage_options, options.servers, how))
                    if server is not None:
                        requests.append(sum(server.stats()["requests"].values()) / options.servers)
                name = f"{place}, {'claimed' if how == 'whole' else how}"
                results[name] = {
                    "coverage_by_one_at_a_time": measure.summary([run["ratio"] for run in runs]),
                    "worst": min(run["ratio"] for run in runs),
                    "seconds": measure.summary([run["seconds"] for run in runs]),
                    **({"requests_per_server": measure.summary(requests)} if requests else {}),
                }
                measure.say(f"{name}: {results[name]}")
                if how == "whole":
                    text = f"{name}: coverage of the worst of {options.repeat} runs, by that of one at a time"
                    requirements.append(measure.at_least(text, results[name]["worst"], 1.0))
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
