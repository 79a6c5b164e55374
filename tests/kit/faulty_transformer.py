"""The host `transformer`, with faults. Copied beside the pipeline file of a test, since jobs import it from there."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from stagger.blocks.host import HostContext
from stagger.blocks.serving.span_server import Computed
from stagger.blocks.serving.wire import Request
from stagger.blocks.transformer_host import TransformerHost


class Faulty(TransformerHost):
    """Notes each request that it begins to compute in the file `notes`/<server>.

    delay_s: seconds that each takes longer. faults: rank -> `nan` or `hang`: what the first attempt of that rank does
    from its third request on.
    """

    def __init__(
        self,
        context: HostContext,
        notes: str,
        delay_s: float = 0.0,
        faults: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(context, **options)
        self.delay_s = delay_s
        first = context.server_id.endswith(".1")
        self.fault = (faults or {}).get(str(context.rank), "") if first else ""
        self.notes = Path(notes, context.server_id)
        self.begun = 0

    def compute(self, request: Request) -> Computed:
        self.begun += 1
        with self.notes.open("a") as file:
            print(request.id, request.start, request.end, file=file)
        time.sleep(self.delay_s)
        if self.begun == 3 and self.fault == "hang":
            threading.Event().wait()
        if self.begun == 3 and self.fault == "nan":
            run = self.model.run
            vars(self.model)["run"] = lambda *given: run(*given) * float("nan")
        return super().compute(request)
