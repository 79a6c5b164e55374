"""What given GPUs can do with a model: as a whole, streamed, or as a swarm. Pure arithmetic on estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagger.blocks.placement.bound import routing_capacity
from stagger.blocks.placement.joint_moves import HORIZON_S, planned_moves
from stagger.blocks.placement.petals import choose_best_blocks
from stagger.blocks.placement.spans import Span
from stagger.blocks.planning.gpus import Gpus
from stagger.blocks.planning.model_size import ModelSize
from stagger.errors import counted
from stagger.models.choice import STREAMED_BLOCKS_ON_GPU
from stagger.models.memory import room as blocks_that_fit
from stagger.models.memory import with_reserve

#: Bytes of a GB.
GB = 1e9

#: GB of a device's memory that the driver and the libraries take before anything is loaded.
CONTEXT_GB = 0.7

#: Tokens per second of streaming, of those of the whole model; and of a swarm, of its routing capacity: the targets of
#: benchmarks/models and of docs/blocks.md.
STREAMED, ROUTED = 0.95, 0.9

#: Share of a rank's memory that holds hidden states while a model is streamed from storage.
WINDOW = 0.5

#: A simpler engine is recommended if it reaches this share of the fastest one.
SIMPLER = 0.9

#: Share of the store's bandwidth that others can spare all the time.
TAKEN = 0.5

#: GPUs of one rank that are tried for the engine `whole`.
GPUS_OF_A_RANK = (1, 2, 4, 8)

#: Most plans that are made until a swarm is at rest.
PLANS = 50


@dataclass(frozen=True)
class Site:
    """The machines: GB of memory for each GPU's rank (None: not known), GB/s of the store and of one node."""

    memory_gb: float | None
    store_gb: float
    node_gb: float


@dataclass(frozen=True)
class Forecast:
    """What one engine can do. tokens_per_s: of all GPUs together; 0 if it does not fit. why: how, or why not."""

    engine: str
    tokens_per_s: float
    why: str
    store_gb: float = 0.0
    """GB/s that it reads from the store all the time."""

    @property
    def fits(self) -> bool:
        return self.tokens_per_s > 0


@dataclass(frozen=True)
class Device:
    """One GPU of the plan. memory: bytes that are free. block_rate: tokens per second that pass one block."""

    label: str
    memory: int
    block_rate: float


@dataclass(frozen=True)
class SwarmPlan:
    """The spans of a swarm at rest, in the order of the servers. capacity: tokens per second with the best routing."""

    labels: list[str]
    spans: list[Span]
    capacity: float
    covered_s: float
    """Seconds until the first copy of the model is loaded."""


def devices(gpus: Sequence[Gpus], model: ModelSize, rates: dict[str, float]) -> list[Device]:
    """The GPUs, one by one, the fastest first. `rates`: name of a kind -> measured tokens/s of one block."""
    found = []
    for one in gpus:
        estimated = one.known.tflops * 1e12 / model.block_flop if one.known else 0.0
        rate = rates.get(one.name, estimated)
        free = int((one.memory_gb - CONTEXT_GB) * GB)
        found += [Device(one.label, free, rate)] * one.count
    return sorted(found, key=lambda device: -device.block_rate)


def room(device: Device, model: ModelSize) -> int:
    """How many blocks fit on the device, as the host `transformer` counts them, but not more than the model has."""
    return min(model.total_blocks, blocks_that_fit(device.memory, model.largest, model.activations))


def whole(found: Sequence[Device], model: ModelSize) -> Forecast:
    """One model a rank, on as few GPUs as hold it. Only one of a rank's GPUs computes at a time."""
    needed = with_reserve(model.bytes + model.activations)
    speed, ranks, most = 0.0, 0, 0
    for label in dict.fromkeys(device.label for device in found):
        alike = [device for device in found if device.label == label]
        size = next((n for n in GPUS_OF_A_RANK if n <= len(alike) and n * alike[0].memory >= needed), None)
        if size is not None:
            ranks += len(alike) // size
            most = max(most, size)
            speed += len(alike) // size * alike[0].block_rate / model.total_blocks
    if not ranks:
        largest = max(device.memory for device in found)
        return Forecast(
            "whole", 0.0, f"a rank needs {gb(needed)} of GPU memory; the largest GPU has {gb(largest)} free"
        )
    each = "one GPU each" if most == 1 else f"up to {most} GPUs each, of which one computes at a time"
    return Forecast("whole", speed, f"{counted(ranks, 'rank')} with {each}; a rank needs {gb(needed)}")


def stream(found: Sequence[Device], model: ModelSize, site: Site) -> Forecast:
    """Each GPU is a rank through which all blocks pass, from the host's memory or from storage."""
    needed = with_reserve(STREAMED_BLOCKS_ON_GPU * model.largest + model.ends_bytes + model.activations)
    able = [device for device in found if device.memory >= needed]
    if not able:
        return Forecast("stream", 0.0, f"a rank needs {gb(needed)} of GPU memory for two blocks and the ends")
    computed = [STREAMED * device.block_rate / model.total_blocks for device in able]
    host = with_reserve(model.bytes)
    ranks = f"{counted(len(able), 'rank')} with one GPU each"
    if site.memory_gb is None or site.memory_gb * GB >= host:
        assumed = "" if site.memory_gb else f", if each has {gb(host)} of host memory (--memory)"
        return Forecast("stream", sum(computed), f"{ranks}; the model stays in host memory{assumed}")
    window = WINDOW * site.memory_gb * GB / (model.hidden * model.item_bytes)
    each_gb = min(site.node_gb, site.store_gb / len(able))
    read = window / (model.bytes / GB / each_gb)
    speeds = [min(one, read) for one in computed]
    traffic = sum(speed / window * model.bytes / GB for speed in speeds)
    limit = "the store" if read < max(computed) else "computing"
    each = f"each reads the model from storage for every {counted(int(window), 'token')}"
    why = f"{ranks}; {each}, together {traffic:.2g} GB/s all the time; {limit} is the limit"
    return Forecast("stream", sum(speeds), why, traffic)


def swarm(found: Sequence[Device], model: ModelSize, site: Site) -> tuple[Forecast, SwarmPlan | None]:
    """Each GPU is a server of as many blocks as it has room for; the ranks that use the swarm need none of them."""
    rooms = [room(device, model) for device in found]
    total = model.total_blocks
    if sum(rooms) < total:
        best = max(rooms)
        missing = math.ceil((total - sum(rooms)) / best) if best else 0
        more = f"; {counted(missing, 'more GPU')} would do" if best else ""
        what = f"all servers together have room for {counted(sum(rooms), 'block')} of {total}{more}"
        return Forecast("swarm", 0.0, what), None
    plan = planned(found, rooms, model, site)
    servers = counted(len(plan.spans), "server")
    least = f"no fewer than {fewest(rooms, total)} can host it"
    have = "has" if len(plan.spans) == 1 else "have"
    why = f"{servers} with one GPU each {have} room for {sum(rooms) / total:.1f}x the model; {least}"
    why += f"; the first copy is loaded after about {plan.covered_s:,.0f} s"
    return Forecast("swarm", ROUTED * plan.capacity, why), plan


def fewest(rooms: Sequence[int], total_blocks: int) -> int:
    """The least number of servers, those with most room, that have room for all blocks.

    >>> fewest([7, 40, 7, 40], 80), fewest([10, 20, 30], 55)
    (2, 3)
    """
    until = np.cumsum(sorted(rooms, reverse=True))
    return int(np.searchsorted(until, total_blocks)) + 1


def planned(found: Sequence[Device], rooms: Sequence[int], model: ModelSize, site: Site) -> SwarmPlan:
    """The swarm at rest: servers join one at a time, and then plans are made until none pays."""
    total, network = model.total_blocks, site.node_gb * GB / (model.hidden * model.item_bytes)
    able = [(device, size) for device, size in zip(found, rooms, strict=True) if size]
    spans: list[Span] = []
    for number, (device, size) in enumerate(able):
        window = choose_best_blocks(size, spans, total)
        passes = min(device.block_rate / size, network)
        spans.append(Span(f"{number:05}", window.start, window.stop, passes))
    for seed in range(PLANS):
        rng = np.random.default_rng(seed)
        moves = planned_moves(spans, spans, total, seconds_per_block=0.0, horizon_s=100 * HORIZON_S, rng=rng)
        if not moves:
            break
        spans = [
            Span(span.server_id, moves[span.server_id].start, moves[span.server_id].stop, span.throughput)
            if span.server_id in moves
            else span
            for span in spans
        ]
    budgets = [Span(span.server_id, span.start, span.end, span.throughput * span.length) for span in spans]
    first = math.ceil(total / max(rooms))
    covered_s = sum(model.block_bytes) / GB / min(site.store_gb, first * site.node_gb)
    return SwarmPlan([device.label for device, _ in able], spans, routing_capacity(budgets, total), covered_s)


def best(forecasts: Sequence[Forecast], site: Site) -> Forecast | None:
    """The simplest engine, in the given order, that is nearly as fast as the fastest; None if none fits.

    An engine that takes much of the store all the time is recommended only where no other fits.
    """
    able = [one for one in forecasts if one.fits]
    quiet = [one for one in able if one.store_gb <= TAKEN * site.store_gb]
    fastest = max((one.tokens_per_s for one in quiet or able), default=0.0)
    return next((one for one in quiet or able if one.tokens_per_s >= SIMPLER * fastest), None)


def gb(number: float) -> str:
    """Bytes, in a sentence.

    >>> gb(137.4e9), gb(1.71e9), gb(12_300_000)
    ('137 GB', '1.7 GB', '0.012 GB')
    """
    value = number / GB
    return f"{value:,.0f} GB" if value >= 10 else f"{value:.1f} GB" if value >= 1 else f"{value:.2g} GB"
