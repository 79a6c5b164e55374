"""One task from its start to its first read: file-system calls, CPU and imports, beside datatrove and bare Python.

Both tools do the same work: filter one small local JSONL file with the same plain function into one uncompressed file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.kit import measure
from stagger.bundle import task_arguments
from stagger.bundle.loader import LATE

HERE = Path(__file__).parent
CPU_LIMIT_S = 0.15
CALLS_LIMIT = 200

#: Packages that are costly to import, and that a task with local files does not need.
HEAVY = (
    "aiobotocore", "boto3", "botocore", "cloudpickle", "datasets", "fsspec", "huggingface_hub", "jinja2", "loguru",
    "numpy", "pydantic", "requests", "rich", "s3fs", "submitit", "typer", "yaml",
)  # fmt: skip
#: Packages that a local task of stagger must not import.
FORBIDDEN = ("loguru", "pydantic", "s3fs", "submitit")

#: What a task needs to read JSON, and all that this imports.
ORJSON = f"import sys; sys.path.append({sysconfig.get_path('platlib')!r}); import orjson"

#: The same without the modules that a bundle imports late, and with what any task needs besides: no start can use much
#: less CPU time than this.
LEAST = f"""import sys
sys.modules.update((name, type(sys)(name)) for name in {LATE})
sys.modules["platform"].system = lambda: "Linux"
{ORJSON}, signal, typing"""

#: Runs a module as `python -m` does, then prints the imported modules and the peak memory in KB.
IMPORTS = """import json, os, runpy, sys
os._exit = sys.exit  # A task of stagger ends by it, before anything could be printed here.
module, sys.argv[1:] = sys.argv[1], sys.argv[2:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit:
    pass
modules = sorted(sys.modules)
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([modules, int(peak)]))"""


@dataclass
class Start:
    """How one program starts its tasks. `command` does what running `module` with `arguments` does.

    Its ranks count from `first`: a rank of stagger runs once. `reads` is the first file that it reads, by default its
    shard.
    """

    command: list[str]
    module: str = ""
    arguments: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    first: int = 0
    reads: str = ""

    def of(self, rank: int) -> tuple[list[str], dict[str, str]]:
        """Command and environment of the task of one rank."""
        slurm = {"SLURM_JOB_ID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": str(rank)}
        number = str(self.first + rank)
        environment = {name: value.replace("{rank}", number) for name, value in self.environment.items()}
        return [part.replace("{rank}", number) for part in self.command], {**slurm, **environment}


def plan_datatrove(folder: str) -> list[str]:
    """Do what datatrove's Slurm executor does at launch, except sbatch. Returns the arguments of its tasks."""
    from unittest import mock

    from datatrove.executor.slurm import SlurmPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    keep = import_module("steps").keep  # Found on PYTHONPATH, like users' own steps.
    pipeline = [JsonlReader(f"{folder}/input"), keep, JsonlWriter(f"{folder}/datatrove", compression=None)]
    logs = f"{folder}/datatrove-logs"
    tasks = len(os.listdir(f"{folder}/input"))
    with mock.patch("datatrove.executor.slurm.launch_slurm_job", return_value="1"):
        SlurmPipelineExecutor(
            pipeline, tasks=tasks, time="1:00:00", partition="none", logging_dir=logs, slurm_logs_folder=f"{logs}/slurm"
        ).run()
    return [f"{logs}/executor.pik"]


def make_input(folder: str, ranks: int, documents: int) -> None:
    os.mkdir(f"{folder}/input")
    for rank in range(ranks):
        records = [{"text": f"Document {number} of rank {rank}.", "id": f"{number}"} for number in range(documents)]
        lines = [json.dumps(record) for record in records]
        Path(f"{folder}/input/{rank:05d}.jsonl").write_text("\n".join(lines) + "\n")


def check_output(path: str, documents: int) -> None:
    """Raise RuntimeError unless the task wrote `documents` documents."""
    written = Path(path).read_text().count("\n")
    if written != documents:
        raise RuntimeError(f"{path} has {written} documents, not {documents}")


def count_calls(start: Start, rank: int, folder: str) -> dict[str, Any]:
    """Count the file-system calls of one task with strace: before it opens its input, and in total."""
    command, environment = start.of(rank)
    log = f"{folder}/strace.log"
    measure.run(["strace", "-f", "-e", "trace=%file,getdents64", "-o", log, *command], environment)
    lines = [line for line in Path(log).read_text().splitlines() if "resumed>" not in line and "(" in line]
    lines = [line for line in lines if "+++" not in line and "---" not in line]
    read = start.reads.replace("{rank}", str(rank)) or f"{folder}/input/{start.first + rank:05d}.jsonl"
    opened = [number for number, line in enumerate(lines) if " openat(" in line and f'"{read}"' in line]
    before = opened[0] if start.module or start.reads else len(lines)
    missed = sum("ENOENT" in line for line in lines[:before])
    return {"calls_before_first_read": before, "of_which_not_found": missed, "calls": len(lines)}


def imports(start: Start, rank: int) -> dict[str, Any]:
    """The modules that one task has imported at its end, and its peak memory, too small for wait4 to measure."""
    arguments = [argument.replace("{rank}", str(start.first + rank)) for argument in start.arguments]
    command = [sys.executable, *start.flags, "-c", IMPORTS, start.module, *arguments]
    output, _ = measure.run(command, start.of(rank)[1])
    modules, peak_kb = json.loads(output.splitlines()[-1])
    heavy = [name for name in HEAVY if name in modules]
    return {"peak_mb": round(peak_kb / 1024, 1), "modules": len(modules), "heavy_imports": heavy}


def ratios(results: dict[str, Any], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The figures of one program divided by those of another, for each pair."""
    found: dict[str, Any] = {}
    for one, other in pairs:
        if one in results and other in results:
            a, b = results[one], results[other]
            ratio = {key: round(a[key]["median"] / b[key]["median"], 2) for key in ("cpu_s", "wall_s")}
            shared = [key for key in ("calls_before_first_read", "peak_mb") if key in a and key in b]
            found[f"{one} / {other}"] = ratio | {key: round(a[key] / b[key], 2) for key in shared}
    return found


def main() -> int:
    parser = measure.parser(__doc__ or "", repeat=9)
    parser.add_argument("--documents", type=int, default=10, help="documents in a task's input file")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    folder = tempfile.mkdtemp(prefix="stagger-startup-", dir=options.folder)
    try:
        # The first rank compiles the byte code; the last two ranks are traced. The launch of stagger runs one.
        ranks = options.repeat + 3
        make_input(folder, 1 + 2 * ranks, options.documents)
        stagger = stagger_start(folder)
        starts = {
            "python -c pass": Start([sys.executable, "-c", "pass"]),
            "python -I -S -c pass": Start([sys.executable, "-I", "-S", "-c", "pass"]),
            "python -I -S -c 'import orjson'": Start([sys.executable, "-I", "-S", "-c", ORJSON]),
            "the least imports": Start([sys.executable, "-I", "-S", "-c", LEAST]),
            "stagger": stagger,
            "stagger without a bundle": without_bundle(stagger, 1 + ranks),
        }
        if measure.version("datatrove"):
            starts["datatrove"] = datatrove_start(folder)
        starts["submitit"] = submitit_start(folder, ranks)
        starts |= {f"stagger {option}": Start([*measure.STAGGER, option]) for option in ("--version", "--help")}
        measured: dict[str, list[measure.Cost]] = {name: [] for name in starts}
        for rank in range(options.repeat + 1):
            for name, start in starts.items():
                measured[name].append(measure.run(*start.of(rank))[1])
                if start.module:
                    check_output(f"{folder}/{name.split()[0]}/{start.first + rank:05d}.jsonl", options.documents)
        for name, start in starts.items():
            results[name] = {key: value for key, value in measure.costs(measured[name][1:]).items() if key != "peak_mb"}
            if shutil.which("strace"):
                results[name] |= count_calls(start, options.repeat + 1, folder)
            if start.module:
                results[name] |= imports(start, options.repeat + 2)
    finally:
        shutil.rmtree(folder)
    mine = results["stagger"]
    requirements = [measure.requirement("CPU s of a task", mine["cpu_s"]["median"], CPU_LIMIT_S)]
    if "calls" in mine:
        calls = mine["calls_before_first_read"]
        requirements.append(measure.requirement("file-system calls before the first read", calls, CALLS_LIMIT))
    forbidden = len(set(FORBIDDEN) & set(mine["heavy_imports"]))
    requirements.append(measure.requirement(f"imported of {', '.join(FORBIDDEN)}", forbidden, 0))
    pairs = (
        ("stagger", "python -c pass"),
        ("stagger", "python -I -S -c 'import orjson'"),
        ("stagger", "the least imports"),
        ("stagger", "stagger without a bundle"),
        ("datatrove", "python -c pass"),
        ("datatrove", "stagger"),
        ("submitit", "stagger"),
    )
    notes = {
        "datatrove": measure.version("datatrove") or "not installed: skipped",
        "strace": shutil.which("strace") or "not installed: calls are not counted",
    }
    return measure.report(options, {**notes, "tasks": results, "ratios": ratios(results, pairs)}, requirements)


def stagger_start(folder: str) -> Start:
    """How stagger starts its tasks. The launch runs rank 0, and writes the settings of all tasks."""
    environment = {"STAGGER_BENCHMARK": folder}
    ranks = str(len(os.listdir(f"{folder}/input")))
    launch = [*measure.STAGGER, "launch", str(HERE / "startup.yaml"), "--tasks", ranks, "--limit", "1"]
    measure.run(launch, environment)
    module, arguments = "stagger.task", [f"{folder}/run/launches/1/settings.json", "{rank}"]
    return Start([sys.executable, *task_arguments(), *arguments], module, arguments, ["-I"], environment, 1)


def without_bundle(start: Start, first: int) -> Start:
    """How a user's own template starts a task."""
    return replace(start, command=[sys.executable, "-I", "-m", start.module, *start.arguments], first=first)


def submitit_start(folder: str, ranks: int) -> Start:
    """How submitit starts a job, of a function that does nothing: the least that a program on top of it costs."""
    from submitit.core.utils import DelayedSubmission

    os.mkdir(f"{folder}/submitit")
    for rank in range(ranks):
        job = DelayedSubmission(print, rank)
        job.set_timeout(60, 1)
        job.dump(Path(f"{folder}/submitit/{rank}_submitted.pkl"))
    names = ("GLOBALRANK", "LOCALRANK", "NODEID")
    environment = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "{rank}"}
    environment |= {f"SUBMITIT_LOCAL_{name}": "0" for name in names}
    environment |= {"SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_NNODES": "1"}
    command = [sys.executable, "-u", "-m", "submitit.core._submit", f"{folder}/submitit"]
    return Start(command, environment=environment, reads=f"{folder}/submitit/{{rank}}_submitted.pkl")


def datatrove_start(folder: str) -> Start:
    """How datatrove starts its tasks. They query `scontrol` for their job's hosts; a cheaper stand-in answers here."""
    own_steps = {"PYTHONPATH": str(HERE)}
    arguments, _ = measure.fresh(plan_datatrove, environment=own_steps, folder=folder)
    os.mkdir(f"{folder}/bin")
    scontrol = Path(f"{folder}/bin/scontrol")
    scontrol.write_text("#!/bin/sh\necho node\n")
    scontrol.chmod(0o700)
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        **own_steps,
        "SLURM_NODELIST": "node",
        "RUN_OFFSET": "0",
    }
    script = str(Path(sys.executable).with_name("launch_pickled_pipeline"))
    module = "datatrove.tools.launch_pickled_pipeline"
    return Start([script, *arguments], module, arguments, environment=environment)


if __name__ == "__main__":
    sys.exit(main())
