"""Block hosts for tests."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from stagger.blocks.host import HostContext, Speed


class Recorder:
    """Records the calls it gets. `script` makes one of its calls hang, fail, or wait for the file `flag`."""

    def __init__(
        self, context: HostContext, room: int = 4, script: dict[str, str] | None = None, flag: str = ""
    ) -> None:
        self.context = context
        self.port = 4242
        self.loads_from_storage = True
        self.calls: list[object] = []
        self.loaded: set[int] = set()
        self.script = script or {}
        self.flag = flag
        self.workload = f"recorder {os.getpid()} {id(self)}"
        self._room = room
        self.planned: list[list[int]] = []
        self.counted: Any = {}

    def _at(self, call: str) -> None:
        what = self.script.get(call)
        if what == "hang":
            time.sleep(3600)
        elif what == "fail":
            raise RuntimeError(f"cannot {call}")
        elif what == "wait":
            while not os.path.exists(self.flag):
                time.sleep(0.01)

    def room(self) -> int:
        self._at("room")
        return self._room

    def measure(self) -> Speed:
        self.calls.append("measure")
        self._at("measure")
        return Speed(1000.0, 1000.0)

    def load(self, blocks: range) -> None:
        self._at("load")
        assert self.loaded.isdisjoint(blocks)
        assert len(self.loaded) + len(blocks) <= self._room
        self.loaded |= set(blocks)
        self.calls.append(("load", blocks))

    def unload(self, blocks: range) -> None:
        assert self.loaded.issuperset(blocks)
        self.loaded -= set(blocks)
        self.calls.append(("unload", blocks))

    def plan(self, blocks: Sequence[int]) -> None:
        self.planned.append(list(blocks))

    def about(self) -> dict[str, Any]:
        return {"address": "tcp://node:1", "dtype": "bfloat16"}

    def counters(self) -> Any:
        return self.counted

    def serve(self, stop: threading.Event) -> None:
        self._at("serve")
        stop.wait()
        self._at("drain")
        self.calls.append("drained")


class Half:
    """An invalid host: it lacks most methods."""

    def __init__(self, context: HostContext) -> None:
        pass

    def room(self) -> int:
        return 1
