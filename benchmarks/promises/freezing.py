"""Two attempts at one rank: the older freezes at a random point of its commit, and wakes when the later is done.

On a file system strace stops it at a system call; on S3 the server holds one of its requests, or the answer to it. The
attempts write different documents. After each round the outputs, the record and the sums must be those of one attempt.
Exit status 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from tests.kit.frozen import Point, Scene, round_of
from tests.kit.s3_server import running

#: (engine, unit of the commit, the attempt that writes fewer files); no engine: a file system.
SCENES = list(itertools.product(("", "obstore", "s3fs"), ("rank", "shard"), ("old", "new")))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=1800.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="", help="file, obstore or s3fs")
    given = options.parse_args()
    end, dice = time.monotonic() + given.seconds, random.Random(given.seed)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as place, running("--bucket", "runs") as server:
        scenes: list[tuple[str, Scene, list[Point]]] = []
        for engine, commit, few in SCENES:
            if given.only in ("", engine or "file"):
                name = f"{engine or 'file'}-{commit}-{few}"
                scene = Scene(Path(place) / name, commit, few, engine, server if engine else None)
                scenes.append((name, scene, scene.points()))
                results[name] = {"points": len(scenes[-1][2]), "rounds": 0, "frozen": 0, "broken": []}
        while time.monotonic() < end:
            name, scene, points = dice.choice(scenes)
            point = dice.choice(points)
            wrong = round_of(scene, point)
            results[name]["rounds"] += 1
            results[name]["frozen"] += wrong is not None
            if wrong:
                results[name]["broken"].append({"point": vars(point), "wrong": wrong})
                measure.say(f"{name}: {point}: {wrong}")
    requirements = [
        measure.requirement("broken promises", sum(len(found["broken"]) for found in results.values()), 0),
        measure.at_least("rounds in which the older attempt froze", sum(f["frozen"] for f in results.values()), 1),
    ]
    return measure.report(given, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
