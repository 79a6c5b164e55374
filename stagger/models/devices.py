"""The devices of a job: which there are, their names, their free memory, and how weights reach them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

import torch

from stagger.slurm.job_memory import free_bytes

CPU = torch.device("cpu")

C_LIBRARY = ctypes.CDLL(None)


def devices_of_job() -> tuple[torch.device, ...]:
    """The job's GPUs, or the CPU if it has none."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return tuple(torch.device("cuda", number) for number in gpus) or (CPU,)


def device_name(device: torch.device) -> str:
    """What kind of device it is: "NVIDIA H200", or the model of the CPU. Numbers are equal on devices of one kind."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return cpu_model()


def cpu_model() -> str:
    """The model of this machine's processors, or their architecture if the kernel names none."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else os.uname().machine


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; on the CPU, what the limit of its job leaves."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    return free_bytes(os.environ)


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given: memory that it uses may be freed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def give_back_memory() -> None:
    """Give free memory of the host back to the system, where the C library can.

    glibc keeps it in pieces, in a pool for each thread (malloc(3), NOTES). Blocks are of other sizes than activations,
    and are made by another thread, so these pools would grow to a multiple of what is in use: here from 3 blocks to 14.
    """
    if hasattr(C_LIBRARY, "malloc_trim"):
        C_LIBRARY.malloc_trim(0)


class Copier:
    """Copies weights to a GPU while it computes: from pinned memory, in a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def copied(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors on the device. Returns once they are there. They may be freed when no kernel uses them."""
        with torch.cuda.stream(self._stream):
            there = {name: self._copy(tensor) for name, tensor in tensors.items()}
        self._stream.synchronize()
        return there

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._device, non_blocking=True)
