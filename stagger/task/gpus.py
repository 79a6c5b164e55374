"""How much of its GPUs a task uses: sampled beside its steps. Imported only by tasks whose job has GPUs."""

from __future__ import annotations

import os
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagger.rundir.records import GpuUse

#: Seconds between two samples. NVML itself looks back over 1/6 to 1 s.
PERIOD_S = 2.0

#: Seconds for the last sample to end: the driver of a broken GPU may never answer.
PATIENCE_S = 1.0


class GpuSampler:
    """Asks NVML for the GPUs of CUDA_VISIBLE_DEVICES, in a thread, while its context lasts.

    Without nvidia-ml-py, or without a driver, it has nothing to tell. A task of less than PERIOD_S costs no import.
    """

    def __init__(self) -> None:
        self.use: GpuUse | None = None
        self._ended = Event()
        self._thread = Thread(target=self._watch, name="gpu-sampler", daemon=True)

    def __enter__(self) -> GpuSampler:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(PATIENCE_S)

    def _watch(self) -> None:
        if self._ended.wait(PERIOD_S):
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            gpus = [handle_of(pynvml, name) for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
            samples = busy = 0
            while True:
                memory = [pynvml.nvmlDeviceGetMemoryInfo(gpu) for gpu in gpus]
                busy += sum(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu for gpu in gpus)
                samples += len(gpus)
                peak_mib = max(one.used for one in memory) // 2**20
                self.use = {
                    "peak_mib": max(peak_mib, self.use["peak_mib"]) if self.use else peak_mib,
                    "total_mib": max(one.total for one in memory) // 2**20,
                    "busy": round(busy / samples / 100, 3),
                }
                if self._ended.wait(PERIOD_S):
                    return
        except pynvml.NVMLError:  # No driver, a part of a GPU (MIG), which has no utilisation, or a GPU that is lost.
            return


def handle_of(pynvml: Any, name: str) -> Any:
    """NVML's handle of a GPU that CUDA_VISIBLE_DEVICES names: by its number, or as GPU-<uuid>."""
    name = name.strip()
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)
