"""What a task records of its GPUs. A module stands in for NVML: no machine of the tests need have a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stagger.launch.launch import Wishes, launch
from stagger.spec.load import load_file
from stagger.task import gpus
from tests.conftest import PipelineFiles
from tests.kit.in_process import in_process
from tests.kit.runs import completions

USED_MIB = {0: 5000, "GPU-1a": 7000}


class Nvml:
    """Two GPUs of 80 GiB, one at work and one idle. Creates the flag with the second sample, if the step waits."""

    class NVMLError(Exception):
        pass

    def __init__(self, flag: Path, driver: bool = True) -> None:
        self.flag = flag
        self.driver = driver
        self.asked = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            self.flag.touch()
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:  # noqa: N802
        return uuid

    def nvmlDeviceGetMemoryInfo(self, gpu: Any) -> Any:  # noqa: N802
        self.asked += 1
        if self.asked > len(USED_MIB) and os.path.exists(f"{self.flag}-0"):
            self.flag.touch()
        return SimpleNamespace(used=USED_MIB[gpu] * 2**20, total=80 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, gpu: Any) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=90 if gpu == 0 else 0)


def recorded(files: PipelineFiles, folder: Path) -> dict[str, Any]:
    """The completion record of a rank whose step goes on once NVML has been asked."""
    hold = {"my_steps:hold": {"ranks": [0], "flag": str(folder / "flag")}}
    file = files(steps=(hold,), tasks=1, executor={"type": "local", "workers": 1})
    with in_process():
        launch(load_file(str(file)), Wishes()).raise_if_failed()
    (record,) = completions(folder / "run")
    return record


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "PERIOD_S", 0.001)


def test_a_task_records_the_memory_and_the_work_of_its_gpus(
    pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-1a")
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(tmp_path / "flag"))
    assert recorded(pipeline_file, tmp_path)["gpus"] == {"peak_mib": 7000, "total_mib": 81920, "busy": 0.45}


def test_without_a_driver_a_task_records_nothing_and_goes_on(
    pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(tmp_path / "flag", driver=False))
    assert "gpus" not in recorded(pipeline_file, tmp_path)


def test_a_task_without_gpus_asks_nobody(
    pipeline_file: PipelineFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (tmp_path / "flag").touch()
    assert "gpus" not in recorded(pipeline_file, tmp_path)
