"""A scoring run through a swarm on a Slurm cluster, where servers and ranks are killed, stopped and cancelled.

Servers have a time limit of minutes, so that each reaches it again and again. At the end every document must be in the
outputs exactly once, with the numbers of the engine `whole`, and nothing of the swarm may be left. Exit status 1
otherwise. Needs the variable SLURM_CONF, partitions gpu and cpu on this machine, and what model steps need.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.kit import measure
from tests.models.corpus import documents, save_model

BLOCKS, SPAN = 12, 4

#: What is done to the swarm -> how often, of 100 times.
DISTURBANCES = {"killed": 30, "cancelled": 20, "requeued": 15, "stopped": 10, "uncovered": 10, "users killed": 15}

#: Sentences in the logs of users -> what they count.
SAID = {"evictions": "gives up server", "waits for blocks without a server": "no server"}


class Run:
    """The files of a soak, and what it does to its jobs."""

    def __init__(self, folder: Path, servers: int, ranks: int, time_limit: int, delay_s: float) -> None:
        self.folder = folder
        self.path = folder / "run"
        self.ranks = ranks
        self.model = save_model(folder / "model", num_hidden_layers=BLOCKS)
        (folder / "notes").mkdir()
        shutil.copy(measure.ROOT / "tests" / "kit" / "faulty_transformer.py", folder / "faulty.py")
        blocks = {
            "model": self.model,
            "servers": servers,
            "num_blocks": SPAN,
            "host": "faulty:Faulty",
            "host_options": {"notes": str(folder / "notes"), "delay_s": delay_s},
            "mean_block_selection_delay": 0.5,
            "heartbeat": 1,
            "lease": 5,
            "drain": 3,
        }
        gpu = {"partition": "gpu", "gpus_per_task": 1, "time": time_limit, "mem_per_cpu_gb": 1, "max_requeues": 1000}
        cpu = {"partition": "cpu", "time": 60, "mem_per_cpu_gb": 1, "workers": 2, "max_requeues": 1000}
        self.stages = [
            {"name": "swarm", "blocks": blocks, "executor": {"type": "slurm", **gpu}, "retries": {"max": 1000}},
            {
                "name": "score",
                "uses": ["swarm"],
                "tasks": ranks,
                "pipeline": self.steps("out", engine="swarm"),
                "executor": {"type": "slurm", **cpu},
                "retries": {"max": 100},
            },
        ]

    def steps(self, out: str, **params: Any) -> list[dict[str, Any]]:
        return [
            {"read_jsonl": {"path": str(self.folder / "input")}},
            {"score_blocks": {"tokens": 256, "buffer_tokens": 8192, **params}},
            {"write_jsonl": {"path": str(self.folder / out)}},
        ]

    def write_input(self, each: int) -> int:
        """Write a shard of `each` documents for each rank. Returns the number of all."""
        (self.folder / "input").mkdir()
        for shard in range(self.ranks):
            lines = [json.dumps({"id": f"{shard}-{one.id}", "text": one.text}) for one in documents(each, seed=shard)]
            (self.folder / "input" / f"{shard:05d}.jsonl").write_text("\n".join(lines) + "\n")
        return each * self.ranks

    def launch(self, name: str, **content: Any) -> None:
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps({"name": name, "randomize_start_duration": 0, **content}))
        measure.run([*measure.STAGGER, "launch", str(file)])

    def whole(self) -> dict[str, bytes]:
        """The outputs of one process that has all blocks."""
        run_dir, steps = str(self.folder / "whole-run"), self.steps("whole", engine="whole", model=self.model)
        self.launch(
            "whole", run_dir=run_dir, tasks=self.ranks, pipeline=steps, executor={"type": "local", "workers": 1}
        )
        return self.outputs("whole")

    def outputs(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / name).glob("[!.]*")}

    def stage(self, name: str) -> dict[str, Any]:
        output, _ = measure.run([*measure.STAGGER, "status", str(self.path), "--json"], allowed=(0, 1, 3))
        found: dict[str, Any] = next(one for one in json.loads(output)["stages"] if one["name"] == name)
        return found

    def jobs(self) -> set[str]:
        """The ids of all array and end jobs of the run."""
        records = self.path.glob("*/launches/*/launch.json")
        found = [json.loads(path.read_bytes()) for path in records]
        return {job["job_id"] for one in found for job in (*one["arrays"], one["finalize"]) if job["job_id"]}

    def elements(self, states: str = "RUNNING", partition: str = "gpu") -> list[str]:
        """Jobs of the run in these states, as JOB_INDEX."""
        command = ["squeue", "--noheader", "--array", f"--states={states}", f"--partition={partition}", "--format=%i"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        mine = self.jobs()
        return [line for line in lines if line.partition("_")[0] in mine]

    def pids(self, stage: str) -> list[int]:
        """The processes that work on ranks of a stage, found by their open logs."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdecimal():
                continue
            try:
                links = [os.readlink(path) for path in (folder / "fd").iterdir()]
            except OSError:
                continue
            if any(link.startswith(f"{self.path}/{stage}/logs/") for link in links):
                found.append(int(folder.name))
        return found

    def disturb(self, kind: str, dice: random.Random) -> bool:
        """Do one of DISTURBANCES. Returns whether there was anything to do it to."""
        if kind in ("killed", "stopped", "users killed"):
            pids = self.pids("score" if kind == "users killed" else "swarm")
            if not pids:
                return False
            os.kill(dice.choice(pids), signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
            return True
        victims = self.elements()
        if not victims:
            return False
        if kind == "uncovered":
            block = dice.randrange(BLOCKS)
            victims = [one for one in victims if self.hosts(one, block)]
        else:
            victims = [dice.choice(victims)]
        command = ["scontrol", "requeue"] if kind == "requeued" else ["scancel"]
        return bool(victims) and not subprocess.run([*command, *victims], capture_output=True, check=False).returncode

    def hosts(self, element: str, block: int) -> bool:
        """Whether a server of this element has announced the block."""
        rank = int(element.rpartition("_")[2])
        for path in (self.path / "swarm" / "registry").glob(f"server.{rank:05d}.*.json"):
            try:
                record = json.loads(path.read_bytes())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            if record["start"] <= block < record["end"]:
                return True
        return False

    def logs(self, stage: str) -> dict[str, str]:
        return {str(path): path.read_text() for path in sorted((self.path / stage / "logs").glob("*/*.log"))}


def compared(whole: dict[str, bytes], out: dict[str, bytes]) -> dict[str, int]:
    """How many documents are lost, doubled, or have other numbers; files that differ in a byte."""
    wanted = {one["id"]: one for data in whole.values() for one in records(data)}
    found = [one for data in out.values() for one in records(data)]
    return {
        "documents lost": len(wanted.keys() - {one["id"] for one in found}),
        "documents doubled": len(found) - len({one["id"] for one in found}),
        "documents unequal": sum(wanted.get(one["id"]) != one for one in found),
        "files that differ in a byte": sum(out.get(name) != whole.get(name) for name in out.keys() | whole.keys()),
    }


def records(data: bytes) -> list[Any]:
    return [json.loads(line) for line in zstandard.ZstdDecompressor().decompressobj().decompress(data).splitlines()]


def disturbed(run: Run, seconds: float, every: float, dice: random.Random) -> Counter[str]:
    """Disturb the run for `seconds`, or until its users are done."""
    done: Counter[str] = Counter()
    deadline = said = time.monotonic()
    deadline += seconds
    while time.monotonic() < deadline:
        time.sleep(dice.uniform(0, 2 * every))
        (kind,) = dice.choices([*DISTURBANCES], [*DISTURBANCES.values()])
        with contextlib.suppress(ProcessLookupError):
            done[kind] += run.disturb(kind, dice)
        if time.monotonic() - said > 30:
            said, scored = time.monotonic(), run.stage("score")["done"]
            measure.say(f"{dict(done)}, {scored} of {run.ranks} ranks done, {deadline - said:.0f} s to go")
            if scored == run.ranks:
                break
    return done


def main() -> int:
    parser = measure.parser((__doc__ or "").partition("\n")[0], repeat=1)
    parser.add_argument("--minutes", type=float, default=8.0, help="for how long it is disturbed, at most")
    parser.add_argument("--every", type=float, default=12.0, help="seconds between two disturbances, on average")
    parser.add_argument("--servers", type=int, default=10)
    parser.add_argument("--time-limit", type=int, default=3, help="minutes, of each server's job")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds of sleep in each computation of a server")
    parser.add_argument("--ranks", type=int, help="of the stage that scores; by default 3 a minute")
    parser.add_argument("--documents", type=int, default=100, help="of a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait for the end")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Path(tempfile.mkdtemp(prefix="stagger-swarm-soak-", dir=options.folder))
    began = time.monotonic()
    run = Run(work, options.servers, options.ranks or round(3 * options.minutes), options.time_limit, options.delay)
    try:
        count = run.write_input(options.documents)
        run.launch("soak", run_dir=str(run.path), stages=run.stages)
        done = disturbed(run, 60 * options.minutes, options.every, random.Random(options.seed))
        deadline = time.monotonic() + options.timeout
        everything = "PENDING,RUNNING,REQUEUED,SUSPENDED,COMPLETING,STOPPED"
        while (run.elements(everything) or run.elements(everything, "cpu")) and time.monotonic() < deadline:
            time.sleep(2)
        took = time.monotonic() - began
        scored, log = run.stage("score"), "".join(run.logs("score").values())
        results = {
            "documents": count,
            "minutes": round(took / 60, 1),
            "disturbances": dict(done),
            "ranks_done": scored["done"],
            "servers_started": len(run.logs("swarm")),
            "left_at_their_time": sum("it comes back in a new one" in text for text in run.logs("swarm").values()),
            "launches_of_replacements": len(list((run.path / "swarm" / "launches").iterdir())) - 1,
            **{name: log.count(sentence) for name, sentence in SAID.items()},
            "why": dict(Counter(re.findall(r"gives up server \S+: (?:it |its )?([a-z ]+)", log)).most_common(8)),
            "compared": compared(run.whole(), run.outputs("out")),
        }
        registry = {path.name for path in (run.path / "swarm" / "registry").iterdir()} - {"end.json"}
        left = len(registry) + (run.path / "swarm" / "swarm.key").exists() + len(run.elements(everything))
    finally:
        for job in run.jobs():
            subprocess.run(["scancel", job], capture_output=True, check=False)
        shutil.rmtree(work, ignore_errors=True)
    met = [measure.requirement(name, number, 0) for name, number in results["compared"].items()]
    met.append(measure.requirement("ranks not done", run.ranks - scored["done"], 0))
    met.append(measure.requirement("records, keys and jobs left", left, 0))
    return measure.report(options, results, met)


if __name__ == "__main__":
    sys.exit(main())
