"""The crew of a Slurm job that runs ranks beside one another (`executor.ranks_at_once`), on one node of the job.

Only such jobs import this. On several nodes, several_nodes.py beside this file starts a crew on each.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from stagger.errors import Interrupted, StaggerError
from stagger.pipeline.task_context import StopFlag
from stagger.ranks import format_ranks
from stagger.rundir.crew_notes import encode_note, note_path
from stagger.rundir.stage_folder import StageFolder, attempt_name, encode
from stagger.slurm.job_memory import SHARE_VARIABLE, killed_for_memory, limit_mib, used_mib
from stagger.slurm.own_job import job_state
from stagger.storage.storage import Storage
from stagger.task import IN_JOB, Job, TaskSettings
from stagger.task.attempt_log import log
from stagger.task.crew import GRACE_S, Crew, Worker, death_reason
from stagger.task.crew_order import CrewOrder
from stagger.task.own_process import node_name

#: Seconds between two looks at the workers' memory.
LOOK_S = 1.0

#: Least seconds between two notes of the running ranks, which `stagger status` reads.
NOTE_S = 2.0

#: Seconds before the end of a job at which its workers are killed, so that the job can still be requeued.
RESERVE_S = 20.0

#: Least seconds that workers have to stop.
LEAST_GRACE_S = 3.0

#: A worker that holds more than this share of its memory between two ranks is replaced: the next rank needs it whole.
WORN_SHARE = 0.5

#: The variables in which Slurm lists the GPUs of a job, by their makers (slurm.conf(5), gres.conf(5): AutoDetect).
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")

#: The signal by which the first process of a job on several nodes passes SIGTERM on: srun itself ends at a SIGTERM.
PASSED_ON = signal.SIGUSR1


def crew_of(
    order: str,
    argument: str,
    settings: TaskSettings,
    storage: Storage,
    job: Job,
    ranks: Sequence[int],
    node: int,
    nodes: int,
) -> JobCrew:
    """The crew of this process: for all ranks of the job, or for its share of them in a job on several nodes.

    `argument` is the path of the settings. After a requeue, ranks that are done are left out.
    """
    wanted = CrewOrder.of(order)
    if job.restart:
        done = StageFolder(storage, settings.stage_dir).done()
        ranks = [rank for rank in ranks if rank not in done]
    return JobCrew(wanted, argument, settings, storage, job, ranks[node::nodes], node, nodes)


def own_node() -> tuple[int, int]:
    """(number, count) of this process among the processes that srun started, one on each node; (0, 1) without srun.

    Removes the count from the environment: each rank is run by one process, which is no part of a larger task.
    """
    nodes = int(os.environ.pop("SLURM_STEP_NUM_TASKS", None) or 1)
    return (int(os.environ["SLURM_PROCID"]) if nodes > 1 else 0), nodes


class JobCrew(Crew):
    """Runs ranks of a Slurm job, watches their memory, and records the deaths of workers."""

    STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, PASSED_ON)

    def __init__(
        self,
        order: CrewOrder,
        argument: str,
        settings: TaskSettings,
        storage: Storage,
        job: Job,
        ranks: Sequence[int],
        node: int = 0,
        nodes: int = 1,
    ) -> None:
        self.cpus = sorted(os.sched_getaffinity(0))
        self.gpus = {name: os.environ[name].split(",") for name in GPU_VARIABLES if os.environ.get(name)}
        mib = limit_mib(os.environ, requested=bool(order.requested))
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE") or len(self.cpus))
        super().__init__(argument, ranks, order.size(cpus, mib, max(map(len, self.gpus.values()), default=0)))
        self.order = order
        self.task = settings
        self.job = job
        self.stop = StopFlag()
        self.folder = StageFolder(storage, settings.stage_dir)
        self.node = node
        self.has_siblings = nodes > 1
        self.share_mib = mib / max(1, self.size)
        self.done = 0
        self.failed: list[int] = []
        self.halted: list[int] = []
        self.outgrown: dict[int, int] = {}
        self.kernel_kills = killed_for_memory()
        self.looked = self.noted = 0.0
        self.note = b""

    def work(self, stop: StopFlag) -> int:
        """Run the ranks. Returns 0, or 1 if any failed. Raises Interrupted, once all workers have stopped."""
        self.stop = stop
        log(
            f"ranks to run: {len(self.waiting)}, {self.size} at once, on {node_name()}, with at most"
            f" {self.share_mib:,.0f} MiB of memory each"
        )
        try:
            self.run()
        except StaggerError as error:
            log(str(error), "ERROR")
            return 1
        except Interrupted as error:
            reason = signal.SIGTERM if error.signal == PASSED_ON else error.signal
            log(f"stopped by {reason.name}: {self._ends()}, {len(self.waiting)} not begun")
            self._tell(f"stopped {reason.name}")
            raise Interrupted(reason) from None
        finally:
            self.beat(last=True)
        log(f"all ranks have ended: {self._ends()}")
        return 1 if self.failed or self.halted else 0

    def _ends(self) -> str:
        others = {"failed": self.failed, "stopped": self.halted}
        parts = [f"{len(ranks)} {how} ({format_ranks(ranks)})" for how, ranks in others.items() if ranks]
        return ", ".join([f"{self.done} done", *parts])

    # ---- What it decides ----

    def argument(self, number: int) -> str:
        return IN_JOB

    def environment(self, slot: int) -> dict[str, str] | None:
        """A worker's GPUs are those of its slot, and its memory is its share."""
        first, last = slot * self.order.gpus, (slot + 1) * self.order.gpus
        gpus = {name: ",".join(gpus[first:last]) for name, gpus in self.gpus.items()} if self.order.gpus else {}
        return {**os.environ, **gpus, SHARE_VARIABLE: str(int(self.share_mib))}

    def hired_one(self, worker: Worker) -> None:
        """Give a worker processors of its own: libraries start as many threads as they find processors."""
        each = len(self.cpus) // self.size
        if each:
            try:
                os.sched_setaffinity(worker.process.pid, self.cpus[worker.slot * each : (worker.slot + 1) * each])
            except OSError:  # It has died already, or the node's processors have changed.
                return

    def is_worn(self, worker: Worker) -> bool:
        """A worker that keeps something for the next rank, such as a model, may hold more: that rank needs it, too."""
        if worker.process.pid in self.outgrown:
            return True
        return not worker.keeps and used_mib(worker.process.pid, self.share_mib) > WORN_SHARE * self.share_mib

    @property
    def stop_signal(self) -> signal.Signals:
        return signal.SIGUSR2 if self.signal == signal.SIGUSR2 else signal.SIGTERM

    @property
    def is_urgent(self) -> bool:
        """Never: Slurm can send a signal twice, to the job and to its steps."""
        return False

    def grace_s(self) -> float:
        """Until shortly before Slurm ends the job: at its time limit, or after the grace time of a preemption."""
        try:
            state, left_s = job_state(self.job.id)
        except StaggerError:
            state = ""  # Slurm does not answer, or has signalled squeue, too.
        if state != "RUNNING":
            return GRACE_S
        return math.inf if left_s is None else max(LEAST_GRACE_S, left_s - RESERVE_S)

    # ---- What it learns ----

    def ended(self, rank: int, answer: list[bytes]) -> None:
        if answer[0] == b"ok":
            self.done += 1
        else:
            self.failed.append(rank)
        self._advanced(answer)

    def died(self, rank: int, pid: int, status: int) -> None:
        kills = killed_for_memory()
        if pid in self.outgrown:
            kind = "OUT_OF_MEMORY"
            reason = f"used {self.outgrown[pid]:,} MiB of memory; its share of the job's is {self.share_mib:,.0f} MiB"
        elif status == -signal.SIGKILL and kills > self.kernel_kills:
            kind, reason = "OUT_OF_MEMORY", "was killed by the kernel: the job's memory was exhausted"
        else:
            kind, reason = "killed", death_reason(status)
        self.kernel_kills = kills
        log(f"rank {rank}: its worker process {pid} {reason}", "ERROR")
        self.failed.append(rank)
        self._record(rank, pid, {"kind": kind, "error": f"worker process {pid} {reason}"})

    def has_quit(self, rank: int, answer: list[bytes], pid: int) -> bool:
        """Slurm signals all processes of a job, in any order: the crew's own signal may be on its way."""
        self.stopped(rank, answer, pid)
        return True

    def stopped(self, rank: int, answer: list[bytes], pid: int) -> None:
        self.halted.append(rank)
        self._advanced(answer)
        if not answer:
            error = f"stopped by {self.stop_signal.name}; worker process {pid} did not stop in time, and was killed"
            self._record(rank, pid, {"kind": "interrupted", "error": error, "signal": self.stop_signal.name})

    def beat(self, *, last: bool = False) -> None:
        if self.signal is None and self.stop.signal is not None:  # It came before this crew listened.
            self.signal = self.stop.signal
        now = time.monotonic()
        if now - self.looked >= LOOK_S and not last:
            self.looked = now
            self._watch_memory()
        if last or now - self.noted >= NOTE_S:
            self.noted = now
            self._write_note()

    # ---- What it tells ----

    def _watch_memory(self) -> None:
        """Kill the workers that use more than their share: the node, and the other ranks, live on."""
        for worker in self.workers:
            used = used_mib(worker.process.pid, self.share_mib)
            if used > self.share_mib:
                self.outgrown[worker.process.pid] = used
                worker.kill()

    def _write_note(self) -> None:
        """Write the ranks that run now, and those that have failed: for `stagger status`, all others wait."""
        note = encode_note(self.running, self.failed)
        if note == self.note:
            return
        self.note = note
        try:
            self.folder.storage.write(note_path(self.order.notes, self.job.id, self.node), note)
        except (OSError, StaggerError) as error:
            log(f"the running ranks cannot be noted for stagger status: {error}", "WARNING")

    def _advanced(self, answer: list[bytes]) -> None:
        if b"advanced" in answer and not self.job.advanced:
            self.job.advanced = True
            self._tell("advanced")

    def _tell(self, line: str) -> None:
        """Tell the first process of a job on several nodes, which reads the output of all crews."""
        if self.has_siblings:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def _record(self, rank: int, pid: int, ending: dict[str, Any]) -> None:
        """Write the failure record of a rank whose process ended before it could."""
        attempt = attempt_name(self.task.launch, self.job.restart)
        record = {
            "rank": rank,
            **ending,
            "traceback": "",
            "attempt": attempt,
            "launch": self.task.launch,
            "job": self.job.id,
            "host": node_name(),
            "ended": time.time(),
        }
        try:
            self.folder.storage.write(self.folder.failure(rank, attempt), encode(record))
        except (OSError, StaggerError) as error:
            log(f"rank {rank}: the failure record cannot be written: {error}", "ERROR")
