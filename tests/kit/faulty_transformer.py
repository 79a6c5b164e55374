"""The host `transformer`, with faults, and a step. Copied beside the pipeline file of a test, since jobs import it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stagger.blocks.host import HostContext
from stagger.blocks.serving.span_server import Computed
from stagger.blocks.serving.wire import Request
from stagger.blocks.transformer_host import TransformerHost
from stagger.pipeline import Document
from stagger.pipeline.hooks import BoundStep, stateless
from stagger.pipeline.task_context import TaskContext


class Faulty(TransformerHost):
    """Notes each request that it begins to compute in the file `notes`/<server>.

    delay_s: seconds that each takes longer, until the file `until` exists. faults: rank -> `nan` or `hang`: what each
    attempt of that rank does from its third request on, until the file `notes`/<fault> exists.
    """

    def __init__(
        self,
        context: HostContext,
        notes: str,
        delay_s: float = 0.0,
        until: str = "",
        faults: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(context, **options)
        self.fault = (faults or {}).get(str(context.rank), "")
        self.delay_s = 0.0 if self.fault else delay_s
        self.until = Path(until)
        self.notes = Path(notes, context.server_id)
        self.begun = 0

    def compute(self, request: Request) -> Computed:
        self.begun += 1
        with self.notes.open("a") as file:
            print(request.id, request.start, request.end, file=file)
        if not (self.until.name and self.until.exists()):
            time.sleep(self.delay_s)
        if self.begun == 3 and self.fault and not self.notes.with_name(self.fault).exists():
            self._break()
        return super().compute(request)

    def _break(self) -> None:
        if self.fault == "hang":
            threading.Event().wait()
        run = self.model.run
        vars(self.model)["run"] = lambda *given: run(*given) * float("nan")


@stateless
class WaitForFile(BoundStep):
    """Passes documents on; those of a rank's last shard, once `file` exists."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.task: TaskContext | None = None

    def bind(self, task: TaskContext) -> None:
        self.task = task

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        assert self.task is not None
        while self.task.shards[-1] == self.task.all_shards[-1] and not self.file.exists():
            time.sleep(0.05)
        yield from data
