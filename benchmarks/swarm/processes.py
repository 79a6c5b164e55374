"""Servers of a swarm in processes of their own, for the benchmarks: echo, sleeping, or a real span of a model."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stagger.blocks.serving.client import Client
from stagger.blocks.serving.connections import Looked
from stagger.blocks.serving.flight import Work
from stagger.blocks.serving.keys import KeyPair
from stagger.blocks.serving.routing import Offer
from stagger.blocks.serving.span_server import Computed, SpanServer
from stagger.blocks.serving.wire import Model, Request, write_lengths

CONTEXT = multiprocessing.get_context("spawn")

Compute = Callable[[Request], Computed]


def echo(start: int, end: int, rate: float) -> Compute:
    """Computes nothing: the hidden state goes back as it came."""
    return lambda request: Computed(min(end, request.end), request.hidden)


def sleeping(start: int, end: int, rate: float) -> Compute:
    """Takes as long as a device of `rate` tokens times blocks per second, and no processor."""

    def compute(request: Request) -> Computed:
        reached = min(end, request.end)
        time.sleep(request.tokens * (reached - request.start) / rate)
        return Computed(reached, request.hidden)

    return compute


def started(target: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
    """A process that runs `target` with a pipe and these arguments, and our end of the pipe.

    Only the process holds the other end: `told` notices when it dies.
    """
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    return process, here


def told(process: Any, pipe: Any) -> Any:
    """What a process says next. Raises RuntimeError when it has died; its own error stands on standard error."""
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise died(process) from None


def died(process: Any) -> RuntimeError:
    return RuntimeError(f"a process of the benchmark ended with {process.exitcode}; its error stands above.")


def stop_of(pipe: Any) -> threading.Event:
    """In a process: an event that is set on SIGTERM, and when the benchmark has died."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def watch() -> None:
        pipe.poll(None)  # Until the other end is closed.
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    return stop


def serve(pipe: Any, make: Any, model: Model, clients: bytes | None, start: int, end: int, rate: float) -> None:
    """A server's process. It sends its address and key through the pipe, and ends on SIGTERM."""
    stop = stop_of(pipe)
    server = SpanServer(make(start, end, rate), model, "127.0.0.1", clients)
    pipe.send((server.address, server.public_key))
    server.serve(stop)


@contextmanager
def servers(
    make: Any, model: Model, keys: KeyPair | None, spans: list[tuple[int, int, float]]
) -> Iterator[tuple[dict[str, Offer], dict[str, Any]]]:
    """Servers of these spans (start, end, rate): their offers, and their processes."""
    offers, processes = {}, {}
    begun = [started(serve, make, model, keys.public if keys else None, *span) for span in spans]
    try:
        for number, ((process, pipe), (start, end, _)) in enumerate(zip(begun, spans, strict=True)):
            name = f"{number:05d}.1"
            address, key = told(process, pipe)
            offers[name], processes[name] = Offer(name, address, key, start, end), process
        yield offers, processes
    finally:
        for process, _ in begun:
            process.kill()
            process.join()


def client_of(offers: dict[str, Offer], model: Model, keys: KeyPair | None, **options: Any) -> Client:
    return Client(lambda: Looked(offers), model, keys, **{"tell": lambda _: None, **options})


def work(number: int, model: Model, tokens: int) -> Work:
    hidden = [bytes(tokens * model.hidden_size * 4)]
    return Work(number, (1, tokens, model.hidden_size), write_lengths([tokens]), hidden, (model.total_blocks,))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process until now, with its ended threads: the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime(~pid << 3 | 2)
