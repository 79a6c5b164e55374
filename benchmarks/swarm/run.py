"""A swarm's transport, routing, failures and computing, beside raw sockets, the best routing, and one process."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from benchmarks.kit import measure

#: Limits: the wire in the clear / raw sockets; bytes per second with CURVE; shares of the capacity; seconds.
ZMQ, CURVE, ONE, SIX, KILLED, STOPPED = 1.2, 5e8, 0.90, 0.85, 0.5, 10.0

#: Width of the hidden state -> least tokens per CPU second of a swarm with CURVE / those of the whole model.
COMPUTING = {256: 0.80, 1024: 0.90}

NOTES = (
    "Transport: a hidden state of 16 MB to a server and back over loopback, one at a time, in turn with raw sockets.",
    "Routing and failures: computing is sleep, so wall time counts. The capacity is that of the best routing.",
    "Computing: CPU seconds of the client and four servers, over 1024-token microbatches; states must be equal.",
)


def main() -> int:
    options = measure.parser(__doc__ or "", repeat=3)
    options.add_argument("--only", choices=["transport", "routing", "failures", "computing"], help="a part")
    options.add_argument("--seconds", type=float, default=20.0, help="of each run of routing")
    given = options.parse_args()
    results: dict[str, Any] = {"notes": NOTES}
    met: list[dict[str, Any]] = []
    if given.only in (None, "transport"):
        measure.say("transport")
        from benchmarks.swarm import transport

        found = results["transport"] = transport.measure(40)
        results["transport of 128 MB"] = transport.measure(5, 128)
        for what, key in (("wall", "median_wall_to_raw"), ("CPU", "cpu_to_raw")):
            met.append(measure.requirement(f"wire in the clear / raw sockets, 16 MB, {what}", found["zmq"][key], ZMQ))
        met.append(measure.at_least("bytes/s of a connection with CURVE", found["curve"]["bytes_per_s"], CURVE))
    if given.only in (None, "routing"):
        measure.say("routing")
        from benchmarks.swarm import routing

        found = results["routing"] = routing.measure(given.repeat, given.seconds)
        met.append(measure.at_least("one client: share of capacity", found["one_client"]["share_of_capacity"], ONE))
        met.append(measure.at_least("six clients: share of capacity", found["six_clients"]["share_of_capacity"], SIX))
    if given.only in (None, "failures"):
        measure.say("failures")
        from benchmarks.swarm import routing

        found = results["failures"] = routing.failures()
        met.append(measure.requirement("killed: seconds", found["killed_to_sent_again_s"]["median"], KILLED))
        met.append(measure.requirement("stopped: seconds", found["stopped_to_sent_again_s"]["max"], STOPPED))
    if given.only in (None, "computing"):
        from benchmarks.swarm import computing

        results["computing"] = {}
        for hidden, least in COMPUTING.items():
            runs = []
            for turn in range(given.repeat):
                runs.append(computing.compared(hidden))
                measure.say(f"computing, hidden {hidden}, run {turn + 1}: {runs[-1]['ratio']:.3f} of whole")
            runs.sort(key=lambda run: float(run["ratio"]))
            results["computing"][hidden] = runs[len(runs) // 2] | {"ratios": [run["ratio"] for run in runs]}
            ratio = statistics.median(run["ratio"] for run in runs)
            met.append(measure.at_least(f"hidden {hidden}: tokens per CPU second, swarm / whole", ratio, least))
            equal = all(run["equal"] for run in runs)
            met.append(measure.at_least(f"hidden {hidden}: states are equal", float(equal), 1.0))
    return measure.report(given, results, met)


if __name__ == "__main__":
    sys.exit(main())
