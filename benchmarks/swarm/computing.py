"""A swarm of four servers with CURVE on this machine, and the whole model in one process: tokens per CPU second.

One machine cannot compute faster for being divided: what is lost is what dividing and encrypting cost.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.swarm.processes import cpu_s, died, started, stop_of, told
from stagger.blocks.host import HostContext
from stagger.blocks.placement.spans import ServerState
from stagger.blocks.server.records import ServerRecord
from stagger.blocks.server.registry import Registry
from stagger.blocks.serving.swarm_engine import open_swarm
from stagger.blocks.swarm_place import SwarmPlace, registry_folder
from stagger.blocks.transformer_host import TransformerHost
from stagger.models.microbatch import Microbatch
from stagger.models.open_engine import open_engine
from stagger.storage.storage import Storage

SERVERS, ROWS, LENGTH = 4, 8, 128

#: Width -> number of blocks, and of microbatches: some seconds of computing.
SIZES = {256: 12, 1024: 8}
MICROBATCHES = {256: 32, 1024: 4}
TURNS = 4

#: Servers here announce themselves once, and a machine under load may take minutes.
LEASE_S = 3600


def save_model(folder: str, hidden: int) -> None:
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=SIZES[hidden],
        num_attention_heads=hidden // 64,
        vocab_size=4096,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def serve(pipe: Any, folder: str, stage_dir: str, rank: int, total: int) -> None:
    torch.set_num_threads(1)
    stop = stop_of(pipe)
    share = total // SERVERS
    blocks = range(rank * share, (rank + 1) * share)
    host = TransformerHost(HostContext(total, folder, rank, stop.is_set, stage_dir=stage_dir))
    for block in blocks:
        host.load(range(block, block + 1))
    span = (blocks.start, blocks.stop)
    record = ServerRecord(f"{rank:05d}.1", "node", host.port, ServerState.ONLINE, *span, span, 1.0, 0)
    registry = Registry(Storage(), registry_folder(stage_dir), total)
    registry.announce(replace(record, about=host.about()))
    pipe.send("ready")
    host.serve(stop)
    os._exit(0)  # As a task ends: threads of libraries may not live through the end of the interpreter.


def microbatches(count: int) -> list[Microbatch]:
    torch.manual_seed(0)
    return [Microbatch(n, torch.randint(3, 4096, (ROWS, LENGTH)), (LENGTH,) * ROWS) for n in range(count)]


def passed(engine: Any, total: int, given: list[Microbatch]) -> tuple[list[torch.Tensor], float, float]:
    """States behind all blocks; wall and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = [kept[total] for _, kept in engine.run(given, [total], lambda batch, layer, hidden: hidden.clone())]
    return found, time.perf_counter() - wall, time.process_time() - cpu


def all_live(processes: list[Any]) -> None:
    """Raise RuntimeError when a server has died: without it the client would wait for another one."""
    for process in processes:
        if process.exitcode is not None:
            raise died(process)


def compared(hidden: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    total, count = SIZES[hidden], MICROBATCHES[hidden]
    tokens = count * ROWS * LENGTH
    with tempfile.TemporaryDirectory() as work:
        folder, stage_dir = f"{work}/model", f"{work}/stage"
        save_model(folder, hidden)
        Path(stage_dir).mkdir()
        whole = open_engine(Storage(), folder, "whole", "float32", rows=ROWS, length=LENGTH)
        passed(whole, total, microbatches(2))
        begun = [started(serve, folder, stage_dir, rank, total) for rank in range(SERVERS)]
        processes = [process for process, _ in begun]
        for one in begun:
            told(*one)
        place = SwarmPlace("swarm", stage_dir, total, SERVERS, 15, LEASE_S, model=folder, host="transformer")
        storage = Storage()
        storage.check = lambda: all_live(processes)
        _, opened = open_swarm(storage, {"swarm": place.fields()}, None, None, "float32")
        swarm = opened(ROWS * LENGTH)
        passed(swarm, total, microbatches(4))
        given, equal = microbatches(count), True
        swarm_wall = whole_wall = client_cpu = servers_cpu = whole_cpu = 0.0
        for turn in range(TURNS):  # Both in turn, since what else the machine does changes.
            some = given[turn::TURNS]
            before = sum(cpu_s(process.pid or 0) for process in processes)
            states, wall, cpu = passed(swarm, total, some)
            swarm_wall, client_cpu = swarm_wall + wall, client_cpu + cpu
            servers_cpu += sum(cpu_s(process.pid or 0) for process in processes) - before
            expected, wall, cpu = passed(whole, total, some)
            whole_wall, whole_cpu = whole_wall + wall, whole_cpu + cpu
            equal &= all(torch.equal(one, other) for one, other in zip(states, expected, strict=True))
        swarm.close()
        for process in processes:
            os.kill(process.pid or 0, signal.SIGTERM)
            process.join()
    swarm_rate, whole_rate = tokens / (client_cpu + servers_cpu), tokens / whole_cpu
    return {
        "hidden": hidden,
        "blocks": total,
        "tokens_of_a_microbatch": ROWS * LENGTH,
        "equal": equal,
        "whole_tokens_per_cpu_s": whole_rate,
        "swarm_tokens_per_cpu_s": swarm_rate,
        "ratio": swarm_rate / whole_rate,
        "wall_ratio": whole_wall / swarm_wall,
        "client_share_of_cpu": client_cpu / (client_cpu + servers_cpu),
    }
