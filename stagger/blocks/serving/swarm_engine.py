"""The engine `swarm`: microbatches pass the blocks of the servers of a swarm. What is outside the blocks runs here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stagger.blocks.coverage import Coverage
from stagger.blocks.serving.client import Client
from stagger.blocks.serving.discovery import Discovery
from stagger.blocks.serving.flight import Work
from stagger.blocks.serving.keys import client_keys, key_path
from stagger.blocks.serving.routing import Uncovered
from stagger.blocks.serving.tensors import as_parts, as_tensor
from stagger.blocks.serving.wire import Model, write_lengths
from stagger.blocks.swarm_jobs import SwarmJobs
from stagger.blocks.swarm_place import SwarmPlace
from stagger.errors import StaggerError
from stagger.models.block_source import BlockSource
from stagger.models.checkpoint import Checkpoint
from stagger.models.cut_model import CutModel
from stagger.models.devices import devices_of_job
from stagger.models.engine import Reduce
from stagger.models.engines import LocalEngine, Results
from stagger.models.microbatch import Microbatch
from stagger.models.open_engine import dtype_of
from stagger.models.settings import need_models
from stagger.models.swarm_choice import model_folder, name_of
from stagger.pipeline import count
from stagger.storage.storage import Storage
from stagger.task.attempt_log import log

#: Microbatches that wait for an earlier one, at most: results come back in order.
MOST_AHEAD = 256

#: Counts of the client that the step counts too -> its name there.
COUNTED = {"sent": "microbatches_sent", "replayed": "microbatches_sent_again"}


def open_swarm(
    storage: Storage, uses: Mapping[str, dict[str, Any]], swarm: str | None, model: str | None, dtype: str
) -> tuple[str, Callable[[int], SwarmEngine]]:
    """The folder of the model of a swarm, and what makes its engine, for microbatches of up to that many places.

    `uses` are the swarms of the stage (`Circumstances.uses`), and `swarm` names one of them; `model` and `dtype` are
    those of the step. `stagger.models.steps`, whose room lies below this one, finds this function by its name.

    Raises StaggerError when there is no such swarm, or it has another model or dtype.
    """
    need_models("zmq")
    name = name_of(uses, swarm)
    place = SwarmPlace(**uses[name])
    folder = model_folder(name, place, model, dtype)
    return folder, lambda tokens: SwarmEngine(storage, place, folder, dtype, tokens)


@dataclass
class InOrder:
    """Results that come in any order, and leave in the order in which their microbatches were taken."""

    taken: int = 0
    given: int = 0
    done: dict[int, tuple[Microbatch, dict[int, Any]]] = field(default_factory=dict)

    def has_room(self) -> bool:
        return self.taken - self.given < MOST_AHEAD

    def place(self) -> int:
        self.taken += 1
        return self.taken - 1

    def next(self) -> Iterator[tuple[Microbatch, dict[int, Any]]]:
        """Those whose turn it is."""
        while self.given in self.done:
            self.given += 1
            yield self.done.pop(self.given - 1)


class SwarmEngine(LocalEngine):
    """Sends microbatches through the servers of a swarm, with what the ends of the model compute here.

    Numbers are equal to those of `whole`, bit for bit, where the servers' devices are of one kind.

    Counted beside what other engines count: microbatches that were sent to servers, and those of them sent again.

    Servers that have other files of the model, or another dtype, are not used.
    """

    name = "swarm"

    def __init__(self, storage: Storage, place: SwarmPlace, folder: str, dtype: str, tokens: int) -> None:
        options = place.host_options
        checkpoint = Checkpoint.open(storage, folder)
        self.dtype = dtype_of(checkpoint, options.get("dtype", "auto"))
        if dtype != "auto" and dtype_of(checkpoint, dtype) != self.dtype:
            raise StaggerError(f"dtype is {dtype}, but {place.name} computes in {self.dtype}: leave it out.")
        cut = CutModel(checkpoint, self.dtype, devices_of_job()[:1])
        super().__init__(cut, BlockSource(checkpoint, cut), lambda: storage.check())
        self.place = place
        self._coverage = Coverage(place.name, place.total_blocks, place.patience_s)
        self._has_jobs = SwarmJobs(storage, place.stage_dir)
        self._registry = place.registry(storage, partial(log, level="WARNING"))
        encrypt = options.get("encrypt", True)
        mine = {"fingerprint": checkpoint.fingerprint, "dtype": str(self.dtype).removeprefix("torch.")}
        self._found = Discovery(mine, encrypt)
        self._model = Model(cut.total_blocks, cut.hidden_size, mine["dtype"], tokens)
        self._keys = client_keys(key_path(place.stage_dir, options.get("keys"))) if encrypt else None
        self._client: Client | None = None

    @property
    def devices(self) -> str:
        """The kinds of devices of the servers; looks at the registry until there is one."""
        while not self._found.devices:
            self._wait(Uncovered(range(self.total_blocks), 0.0))
            self._look()
            if not self._found.devices:
                time.sleep(1.0)
        return " + ".join(sorted(self._found.devices))

    def run(self, microbatches: Iterable[Microbatch], layers: Collection[int], reduce: Reduce) -> Results:
        """See `Engine.run`."""
        wanted = tuple(self.wanted(layers))
        self.model.load_ends()
        if wanted == (0,):
            yield from ((batch, {0: reduce(batch, 0, self.model.embed(batch))}) for batch in microbatches)
            return
        client, order = self._connected(), InOrder()
        before = client.counts.copy()
        works = (self._work(batch, order, wanted) for batch in microbatches)
        try:
            for (place, batch), states in client.run(works, wanted[-1], order.has_room):
                self.check()
                order.done[place] = batch, self._reduced(batch, states, reduce)
                yield from order.next()
        finally:
            for name, counter in COUNTED.items():
                count(counter, client.counts[name] - before[name])

    def _work(self, batch: Microbatch, order: InOrder, wanted: tuple[int, ...]) -> Work:
        self.check()
        hidden = self.model.embed(batch)
        rows, length, width = hidden.shape
        key = order.place(), batch
        return Work(key, (rows, length, width), write_lengths(batch.lengths), as_parts(hidden), wanted)

    def _reduced(self, batch: Microbatch, states: dict[int, Any], reduce: Reduce) -> dict[int, Any]:
        count("tokens", sum(batch.lengths))
        shape = (*batch.tokens.shape, self.model.hidden_size)
        device = self.model.devices[0]
        return {
            layer: reduce(batch, layer, as_tensor(state, self.dtype, shape).to(device))
            for layer, state in sorted(states.items())
        }

    def close(self) -> None:
        """End the connections to servers. The next run makes new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # ---- Servers ----

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(self._look, self._model, self._keys, waits=self._wait, tell=log)
        return self._client

    def _look(self) -> Any:
        """The servers of the last look, where the registry cannot be read."""
        view = self._registry.latest
        try:
            view = self._registry.refresh()
        except (OSError, StaggerError) as error:
            log(f"the registry of {self.place.name} cannot be read: {error}", "WARNING")
        before = set(self._found.refused)
        looked = self._found.offers(view)
        for name in self._found.refused.keys() - before:
            log(f"server {name} of {self.place.name} is not used: {self._found.refused[name]}", "WARNING")
        return looked

    def _wait(self, uncovered: Uncovered) -> None:
        """Give up when blocks have had no server for longer than the swarm's users are patient."""
        self.check()
        without = {*uncovered.evicted, *self._found.refused}
        gap = self._coverage.see(self._registry.latest, time.monotonic(), self._has_jobs, without)
        if gap is not None and gap.is_over:
            raise gap.error(time.time())
