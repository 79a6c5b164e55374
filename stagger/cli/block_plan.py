"""`stagger blocks plan`: which model on which GPUs, and the table for people."""

from __future__ import annotations

import math
import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from stagger.errors import StaggerError, counted, missing_extra
from stagger.spec.changes import Changes
from stagger.spec.executors import SlurmSpec
from stagger.spec.load import load_file
from stagger.spec.model_advice import advice
from stagger.spec.models import RunSpec, StageSpec
from stagger.storage.storage import Storage, expand_variables, join
from stagger.terminal import logger, say, say_lines

try:
    from stagger.blocks.planning.forecast import (
        Forecast,
        Site,
        SwarmPlan,
        best,
        devices,
        gb,
        room,
        stream,
        swarm,
        whole,
    )
    from stagger.blocks.planning.gpus import FORM, KINDS, REACHED, Gpus, kind_of, parse_gpus, speeds
    from stagger.blocks.planning.model_size import ModelSize, read_model
    from stagger.blocks.planning.requested import gpus_of, memory_of
    from stagger.blocks.server.registry import Registry
    from stagger.blocks.swarm_place import registry_folder
except ImportError as error:
    if error.name is None or error.name.partition(".")[0] not in ("numpy", "scipy"):
        raise
    raise missing_extra("blocks", error.name, error) from None

#: Steps that run a model.
STEPS = ("score_blocks", "embed_blocks")

#: Tokens of a microbatch, if no step gives them.
TOKENS = 4096


@dataclass(frozen=True)
class Rates:
    """GB/s that the store can send to all nodes, and that one node can receive."""

    store_gb: float
    node_gb: float


@dataclass(frozen=True)
class Wanted:
    """What the file says: the model, the dtype, tokens of a microbatch, and the GPUs (empty if it names no kind)."""

    model: str
    dtype: str | None
    tokens: int
    gpus: str
    memory_gb: float | None
    storage: Storage
    served: Mapping[str, float] = field(default_factory=dict)
    """Name of a kind -> tokens per second of one block, as the run's servers measured it."""


@dataclass(frozen=True)
class Plan:
    """The answer. `rates`: name of a kind -> tokens per second of one block; `measured`: those that were given."""

    model: ModelSize
    gpus: list[Gpus]
    rates: dict[str, float]
    measured: set[str]
    rooms: dict[str, int]
    forecasts: list[Forecast]
    swarm: SwarmPlan | None
    best: Forecast | None

    def document(self) -> dict[str, Any]:
        model, swarm = self.model, self.swarm
        return {
            "model": {**asdict(model), "bytes": model.bytes, "total_blocks": model.total_blocks},
            "gpus": [
                {
                    "name": one.name,
                    "memory_gb": one.memory_gb,
                    "count": one.count,
                    "tokens_per_s_of_a_block": self.rates[one.label],
                    "measured": one.name in self.measured,
                    "blocks": self.rooms[one.label],
                }
                for one in self.gpus
            ],
            "engines": [{**asdict(one), "fits": one.fits} for one in self.forecasts],
            "best": self.best.engine if self.best else None,
            "servers": [
                {"gpu": label, "start": span.start, "end": span.end, "tokens_per_s": span.throughput}
                for label, span in zip(swarm.labels, swarm.spans, strict=True)
            ]
            if swarm
            else [],
            "routing_capacity": swarm.capacity if swarm else 0.0,
        }


def plan(
    file: str, changes: Changes, gpus: str | None, memory_gb: float | None, tokens_per_s: str | None, rates: Rates
) -> Plan:
    """The plan for a pipeline file, or for a model's folder. Raises StaggerError for a mistake in any of them."""
    if is_model(file):
        if changes != Changes():
            raise StaggerError(f"--set and --profile need a pipeline file, and {file} is a model's folder.")
        wanted = Wanted(file, None, TOKENS, "", None, Storage())
    elif os.sep in file and not os.path.exists(file) and not file.endswith((".yaml", ".yml")):
        raise StaggerError(f"There is no folder {file}. {advice(file)}")
    else:
        wanted = of_file(file, changes)
    text = gpus or wanted.gpus
    if not text:
        raise StaggerError(
            f"{file} does not name the kind of its GPUs; give them, for example --gpus {FORM} (known:"
            f" {', '.join(KINDS)})."
        )
    found = parse_gpus(text)
    names = {one.name for one in found}
    measured = {name: speed for name, speed in wanted.served.items() if name in names}
    measured |= speeds(tokens_per_s, found) if tokens_per_s else {}
    for one in found:
        if one.known is None and one.name not in measured:
            raise StaggerError(
                f"--gpus: the speed of {one.name} is not known; give tokens per second of one block with"
                f" --tokens-per-s {one.name}=50000 (known kinds: {', '.join(KINDS)})."
            )
    model = read_model(wanted.storage, wanted.model, dtype=wanted.dtype, tokens=wanted.tokens)
    site = Site(memory_gb or wanted.memory_gb, rates.store_gb, rates.node_gb)
    each = devices(found, model, measured)
    swarmed, spans = swarm(each, model, site)
    forecasts = [whole(each, model), stream(each, model, site), swarmed]
    return Plan(
        model=model,
        gpus=found,
        rates={device.label: device.block_rate for device in each},
        measured=set(measured),
        rooms={device.label: room(device, model) for device in each},
        forecasts=forecasts,
        swarm=spans,
        best=best(forecasts, site),
    )


def is_model(file: str) -> bool:
    """Whether this is a model's folder or its config.json, not a pipeline file."""
    return file.endswith("config.json") or "://" in file or os.path.isdir(file)


def of_file(file: str, changes: Changes) -> Wanted:
    """The stage of a pipeline file that hosts blocks, or has a step that runs a model."""
    spec = load_file(file, changes, logger.info)
    storage = Storage(spec.storage_options)
    for stage in spec.stages:
        if stage.blocks is not None:
            if stage.blocks.model is None:
                raise StaggerError(f"{file}: blocks.model is missing; a plan needs the sizes of the blocks.")
            options, gpus = stage.blocks.host_options, gpus_of(stage, stage.blocks.servers)
            tokens, memory_gb = options.get("tokens", TOKENS), memory_of(stage)
            served = served_speeds(storage, spec, stage, stage.blocks.total or 0)
            return Wanted(stage.blocks.model, options.get("dtype"), tokens, gpus, memory_gb, storage, served)
    for stage in spec.stages:
        for step in stage.pipeline:
            if step.use in STEPS and step.params.get("model"):
                params = cast("dict[str, Any]", expand_variables(step.params))
                tokens = params.get("tokens", TOKENS)
                gpus, memory_gb = gpus_of(stage, jobs_at_once(stage)), memory_of(stage)
                return Wanted(params["model"], params.get("dtype"), tokens, gpus, memory_gb, storage)
    raise StaggerError(f"{file} has neither `blocks` nor a step with a model ({', '.join(STEPS)}); nothing to plan.")


def served_speeds(storage: Storage, spec: RunSpec, stage: StageSpec, total_blocks: int) -> dict[str, float]:
    """What the servers of the file's run measured, if there are any: kind of GPU -> tokens per second of one block."""
    folder = spec.run_dir if len(spec.stages) == 1 else join(spec.run_dir, stage.name)
    found: dict[str, list[float]] = {}
    for member in (
        Registry(storage, registry_folder(folder), total_blocks, tell=logger.warning).refresh().members.values()
    ):
        if member.record is not None and isinstance(device := member.record.about.get("device"), str):
            rate = member.record.pass_throughput * (member.record.end - member.record.start)
            found.setdefault(kind_of(device)[0], []).append(rate)
    return {name: statistics.median(rates) for name, rates in found.items()}


def jobs_at_once(stage: StageSpec) -> int:
    """The number of jobs of a stage that run at the same time, if there are enough nodes."""
    tasks = stage.tasks if isinstance(stage.tasks, int) else 1
    if not isinstance(stage.executor, SlurmSpec):
        return tasks
    jobs = math.ceil(tasks / stage.executor.ranks_per_job)
    return min(jobs, stage.executor.workers or jobs)


def show(plan: Plan) -> None:
    """Print the model, the GPUs, the engines, the recommendation, and the spans of a swarm."""
    model = plan.model
    sure = " (estimated from config.json: there are no weights)" if model.estimated else ""
    smallest, largest = min(model.block_bytes), model.largest
    each = gb(largest) if gb(smallest) == gb(largest) else f"{gb(smallest)} to {gb(largest)}"
    blocks = f"{counted(model.total_blocks, 'block')} of {each}"
    say(f"{model.path}: {blocks}, embedding and head {gb(model.ends_bytes)}, together {gb(model.bytes)}{sure}")
    say()
    say(f"{'GPU':<18}{'number':>7}{'blocks that fit':>17}{'tokens/s of one block':>23}")
    for one in plan.gpus:
        speed = f"{plan.rates[one.label]:,.0f}{'' if one.name in plan.measured else ' *'}"
        say(f"{one.label:<18}{one.count:>7}{plan.rooms[one.label]:>17}{speed:>23}")
    say()
    say(f"{'engine':<10}{'tokens/s':>10}")
    for forecast in plan.forecasts:
        speed = f"{forecast.tokens_per_s:,.0f}" if forecast.fits else "no"
        head = f"{forecast.engine:<10}{speed:>10}  "
        say_lines(textwrap.fill(forecast.why, 100, initial_indent=head, subsequent_indent=" " * len(head)))
    say()
    say(recommendation(plan))
    if plan.swarm is not None:
        show_spans(plan.swarm)
    old = [one.name for one in plan.gpus if one.known and not one.known.bfloat16]
    if old:
        say()
        say(f"The matrix units of {' and '.join(old)} take no bfloat16; use dtype: float16 there.")
    if len(plan.measured) < len({one.name for one in plan.gpus}):
        say_lines(
            "\n* An estimate: the peak of the data sheet times the share that published measurements reach, or"
            f" {REACHED:.0%}.\n  Measured speeds go before it: --tokens-per-s A100=146000"
        )


def recommendation(plan: Plan) -> str:
    if plan.best is None:
        return "None of the three fits. Use more GPUs, GPUs with more memory, or dtype: bfloat16."
    text = f"Best: engine {plan.best.engine}."
    if plan.best.engine == "swarm":
        rate = 1e12 / plan.model.head_flop if plan.model.head_flop else 0
        head = f" Its users compute the head: about {rate:,.0f} tokens/s with 1 TFLOPS each." if rate else ""
        return f"{text}{head}"
    swarm = plan.forecasts[-1]
    share = swarm.tokens_per_s / plan.best.tokens_per_s
    return f"{text} A swarm would reach {share:.2f} of its speed." if swarm.fits else text


def show_spans(swarm: SwarmPlan) -> None:
    """The spans of the swarm: one line for each kind of GPU and span."""
    say()
    say(f"{'servers':<10}{'GPU':<18}{'blocks':<12}{'passes/s each':>14}")
    servers = zip(swarm.labels, swarm.spans, strict=True)
    alike = Counter((span.start, span.end, label, round(span.throughput)) for label, span in servers)
    for (start, end, label, rate), count in sorted(alike.items()):
        say(f"{count:<10}{label:<18}{f'{start}-{end - 1}':<12}{rate:>14,}")
    say(f"routing capacity {swarm.capacity:,.0f} tokens/s")
