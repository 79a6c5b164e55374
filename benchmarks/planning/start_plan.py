"""CPU and memory of `stagger plan` for many tasks, with request limits that are kept, exceeded, or far exceeded."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.kit import measure

#: Limit of the storage in requests per second: unknown, Amazon S3's, a small store's.
LIMITS = (None, 3500, 50)


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=3)
    parser.add_argument("--tasks", type=int, default=100_000)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    requirements = []
    for limit in LIMITS:
        command = [*measure.STAGGER, "plan", f"--tasks={options.tasks}", "--json"]
        command += [f"--backend-limit={limit}"] if limit else []
        runs = [measure.run(command) for _ in range(options.repeat + 1)][1:]
        costs = measure.costs([cost for _, cost in runs])
        name = f"limit {limit}" if limit else "no limit"
        (plan,) = json.loads(runs[0][0])["plans"]
        shown = ("name", "window_s", "peak_1s", "refused", "complete")
        results[name] = {**costs, "policies": [{key: row[key] for key in shown} for row in plan["policies"]]}
        requirements += [
            measure.requirement(f"{name}: CPU s", costs["cpu_s"]["median"], 5),
            measure.requirement(f"{name}: peak MB", costs["peak_mb"]["median"], 500),
        ]
        measure.say(f"{name}: {costs['cpu_s']['median']} CPU s")
    return measure.report(options, results, requirements)


if __name__ == "__main__":
    sys.exit(main())
