"""What a job's script asks of its crews."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CrewOrder:
    """What a job's script asks of its crews.

    at_once: ranks at once on each node; 0 for as many as its processors, memory and GPUs allow.
    cpus, gpus: processors and GPUs of a rank.
    mib: memory that each rank requested, in MiB; 0 if it requested none.
    requested: 1 if the job requested memory, for its ranks or as a whole; else 0.
    notes: the folder for notes of the running ranks.
    """

    at_once: int
    cpus: int
    gpus: int
    mib: int
    requested: int
    notes: str

    @classmethod
    def of(cls, text: str) -> CrewOrder:
        """The order in the script's variable.

        >>> CrewOrder.of("at_once=0 cpus=2 gpus=0 mib=4096 requested=1 notes=/runs/1/my logs").mib
        4096
        """
        numbers, _, notes = text.partition(" notes=")
        fields = (field.partition("=") for field in numbers.split())
        return cls(**{name: int(value) for name, _, value in fields}, notes=notes)

    def __str__(self) -> str:
        """The text of which `of` makes this order again."""
        *numbers, notes = asdict(self).items()
        return " ".join(f"{name}={value}" for name, value in numbers) + f" notes={notes[1]}"

    def size(self, cpus: int, mib: int, gpus: int) -> int:
        """The number of ranks at once on a node with `cpus` processors, `mib` MiB of memory and `gpus` GPUs.

        >>> order = CrewOrder(0, cpus=2, gpus=0, mib=4096, requested=1, notes="")
        >>> order.size(128, 2**20, 0), order.size(128, 2**17, 0)
        (64, 32)
        """
        if self.at_once:
            return self.at_once
        fits = [cpus // self.cpus]
        if self.mib:
            fits.append(mib // self.mib)
        if self.gpus:
            fits.append(gpus // self.gpus)
        return max(1, min(fits))
