"""Looks after a swarm: ends it if its users have ended, or else replaces the servers that are lost.

A server of the swarm runs it as `python -I -m stagger.launch.tend`, with an `Order` on standard input
(`stagger.blocks.server.tending`), and a waiting command calls `tend`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType

import orjson

from stagger.blocks.server.records import attempt_of, rank_of
from stagger.blocks.server.tending import LATER, NEVER, Order
from stagger.errors import StaggerError
from stagger.executor.limits import NoRoom
from stagger.launch.ending import describe, given_up, nodes_submit, start_again
from stagger.launch.finalize import DENIED, NO_JOBS
from stagger.launch.swarms import end_swarms, replaceable, replacement_policy
from stagger.ranks import named_ranks
from stagger.rundir.launch_records import Group, SlurmLaunch
from stagger.rundir.lock import InUse
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.slurm import cluster
from stagger.slurm.command import SlurmBusy
from stagger.status.look import Look, is_told_to_end, look_at_run
from stagger.storage.storage import hide_secrets
from stagger.terminal import logger

#: Seconds for which the run's lock is waited for: commands hold it only for a moment.
LOCK_S = 20.0

#: Seconds by which the age of a job that Slurm shows, and the silence of its server, may be wrong.
CLOCKS_S = 30.0


def tend(
    run: RunFolder,
    name: str,
    *,
    submits: bool = True,
    gone: Collection[str] = (),
    silent: Mapping[str, float] = MappingProxyType({}),
) -> bool:
    """End the swarm of stage `name` if it is over, or else replace its lost servers. Returns whether all is done.

    It is not while jobs of servers that are `gone` still run: they are lost once these have ended. Jobs of `silent`
    servers are cancelled: server -> seconds since it was last heard. Without `submits` nothing is replaced. Raises
    StaggerError, InUse when another process holds the run's lock.
    """
    with run.lock.held(wait_s=LOCK_S):
        record = run.load()
        if record is None:
            return True
        looks = look_at_run(run, record)
        look = looks[name]
        for line in end_swarms(record.spec, looks, [name]):
            logger.info(line)
        if is_told_to_end(look.stage):
            return True
        cancel_silent(look, silent)
        if submits and (lost := replacements(look)):
            start_again(look, lost)
        return not any(still_runs(look, name) for name in gone)


def still_runs(look: Look, server: str) -> bool:
    """Whether the job of a server that is gone still runs: it drains, hangs, or is about to be requeued."""
    rank, (launch, _) = rank_of(server), attempt_of(server)
    latest = max((one.launch for one in look.launches if rank in one.rank_list), default=0)
    return launch == latest and rank in look.activity.running | look.activity.starting.keys()


def replacements(look: Look) -> list[Group]:
    """The lost servers of a swarm that are to be replaced, with the resources of the policy. Logs what it decides."""
    decision, retries = replaceable(look), replacement_policy(look.stage.spec)
    for reason, ranks in given_up(decision).items():
        logger.warning(f"{look.stage.name}: not replaced: {named_ranks(ranks)}: {reason}")
    for group in decision.again:
        assert retries is not None
        logger.info(f"{look.stage.name}: lost servers are replaced: {describe(group, retries)}")
    return decision.again


def cancel_silent(look: Look, silent: Mapping[str, float]) -> None:
    """Cancel the jobs of servers that run, but have been silent for long: they hang, or are frozen.

    A job that started later than its server was heard is another attempt, which has not joined yet.
    """
    for name, seconds in silent.items():
        for one in look.launches:
            if not isinstance(one, SlurmLaunch) or one.launch != attempt_of(name)[0]:
                continue
            for job, age_s in look.jobs.running(one, rank_of(name)).items():
                if age_s > seconds + CLOCKS_S:
                    logger.warning(
                        f"{look.stage.name}: server {name} has been silent for {seconds:.0f} s: its job, {job}, is"
                        " cancelled"
                    )
                    cluster.cancel([job], one.cluster)


def main() -> int:
    """Do what standard input says. Returns 0, LATER when another try may do more, or NEVER."""
    order = Order(**orjson.loads(sys.stdin.buffer.read()))
    try:
        run, record = RunFolder.open(order.run_dir, order.storage_options, patient=True)
        with run.changing(record):
            return 0 if tend_from_node(run, record, order) else LATER
    except (InUse, NoRoom, SlurmBusy) as error:
        logger.warning(f"lost servers are not replaced yet: {error}")
        return LATER
    except StaggerError as error:
        if DENIED.search(str(error)):
            logger.warning(
                f"{str(error).rstrip('.')}. Lost servers are replaced when the array ends, or at once by launch --wait."
                f" {NO_JOBS}"
            )
            return NEVER
        logger.error(str(error))
        return LATER
    except OSError as error:
        logger.error(str(error))
        return LATER


def tend_from_node(run: RunFolder, record: RunRecord, order: Order) -> bool:
    """Tend the swarm of an order; returns as `tend`. Raises StaggerError where there is no sbatch."""
    if not cluster.is_here():
        raise StaggerError("There is no sbatch on this node.")
    submits = nodes_submit(record.spec.stage(order.stage))
    return tend(run, order.stage, submits=submits, gone=order.gone, silent=order.silent)


if __name__ == "__main__":
    logger.configure(handlers=[{"sink": sys.stderr, "format": "{message}"}], patcher=hide_secrets)
    sys.exit(main())
