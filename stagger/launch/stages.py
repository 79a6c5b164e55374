"""Decides which stages of a run start now, and starts them. The decisions are pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from stagger.errors import agreeing
from stagger.executor.limits import check_limits
from stagger.launch.again import undone
from stagger.launch.check import save_plans
from stagger.launch.foreign import warn_of_foreign
from stagger.launch.hand_over import Factors, launch_stage
from stagger.launch.launched import Launched
from stagger.launch.leftovers import Lost, lost_outputs
from stagger.launch.plans import Completions, Pipeline, plan_stages
from stagger.launch.stored_steps import steps_of
from stagger.launch.swarms import is_used, reopen
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.models import RunSpec, StageSpec
from stagger.status.look import Look
from stagger.status.stage_status import stage_status
from stagger.terminal import logger

#: The resources that the run's settings give.
NO_FACTORS = Factors()


@dataclass(frozen=True)
class Standing:
    """The state of a stage that decides what starts. `depends` names the stages it needs, `uses` the swarms beside it.
    `users` are the stages beside a swarm.
    """

    tasks: int
    depends: tuple[str, ...] = ()
    done: Collection[int] = frozenset()
    active: Collection[int] = frozenset()
    uses: tuple[str, ...] = ()
    users: tuple[str, ...] = ()

    @classmethod
    def of(cls, look: Look) -> Standing:
        spec = look.stage.spec
        users = tuple(user.name for user in look.stage.record.spec.users_of(spec.name))
        done, active = frozenset(look.done), frozenset(look.activity.ranks)
        return cls(spec.tasks, spec.depends, done, active, spec.uses, users)

    @property
    def is_done(self) -> bool:
        return len(self.done) >= self.tasks


@dataclass(frozen=True)
class Start:
    """The stage can start, with these ranks; none if all are done or active."""

    ranks: list[int]


@dataclass(frozen=True)
class Waiting:
    """The stage must wait until these stages are done and their outputs are in place."""

    stages: list[str]


def next_start(
    name: str, standings: Mapping[str, Standing], lost: Collection[str], wanted: Iterable[int]
) -> Start | Waiting:
    """Decide whether a stage can start, and with which of the `wanted` ranks. `lost` are stages with lost outputs.

    A swarm starts with the first of its users that is not done and can start, and then all of its servers do, also
    those that were done with earlier users. A user also waits for what its swarms wait for.

    >>> standings = {"a": Standing(2, done={0, 1}), "b": Standing(3, depends=("a",), done={0}, active={2})}
    >>> next_start("b", standings, lost=[], wanted=range(3))
    Start(ranks=[1])
    >>> next_start("b", standings, lost=["a"], wanted=range(3))
    Waiting(stages=['a'])
    """
    mine = standings[name]
    if mine.users:
        needing = [user for user in mine.users if not standings[user].is_done]
        held_up = [held_up_by(user, standings, lost) for user in needing]
        if not all(held_up):
            return Start([rank for rank in wanted if rank not in mine.active])
        return Waiting(held_up[0]) if needing else Start([])
    if waiting := held_up_by(name, standings, lost):
        return Waiting(waiting)
    return Start([rank for rank in wanted if rank not in mine.done and rank not in mine.active])


def held_up_by(name: str, standings: Mapping[str, Standing], lost: Collection[str]) -> list[str]:
    """The stages that a stage waits for, those of the swarms that it uses included."""
    mine = standings[name]
    ahead = list(dict.fromkeys(other for one in (name, *mine.uses) for other in standings[one].depends))
    waiting = [other for other in ahead if not standings[other].is_done]
    if not mine.is_done:
        waiting += [other for other in ahead if other in lost and other not in waiting]
    return waiting


def needed_outputs(names: Iterable[str], standings: Mapping[str, Standing]) -> list[str]:
    """The stages whose outputs must exist for the stages `names` to continue.

    These are the stages themselves, and for each one that is not done, the completed stages it depends on. Outputs
    that only finished stages read may be removed, and often are.
    """
    needed = dict.fromkeys(
        other
        for name in names
        for other in (
            *(other for other in standings[name].depends if not standings[name].is_done and standings[other].is_done),
            *([] if spent(name, standings) else [name]),
        )
    )
    return list(needed)


def lost_results(
    looks: Mapping[str, Look], names: Iterable[str], *, checksums: bool = False
) -> dict[str, dict[str, Lost]]:
    """Stage -> its lost outputs by path, among the outputs that must exist for the stages `names` to continue.

    `checksums` is as for `lost_outputs`.
    """
    standings = {name: Standing.of(look) for name, look in looks.items()}
    needed = needed_outputs(names, standings)
    return {name: paths for name in needed if (paths := lost_outputs(looks[name], checksums=checksums))}


def spent(name: str, standings: Mapping[str, Standing]) -> bool:
    """Whether all stages that depend on a stage are done; false when none does."""
    readers = [other for other in standings.values() if name in other.depends]
    return bool(readers) and all(reader.is_done for reader in readers)


def run_stages(
    run: RunFolder,
    record: RunRecord,
    looks: dict[str, Look],
    *,
    limit: int | None = None,
    only: Collection[str] | None = None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
    lost: Mapping[str, Mapping[str, Lost]] | None = None,
    factors: Factors = NO_FACTORS,
) -> Launched:
    """Launch each stage whose dependencies are done. End jobs launch the stages that wait for Slurm jobs.

    Args:
        run: the run directory, whose lock this process holds.
        record: its run.json.
        looks: stage -> look, taken under the lock; updated here for stages that ran or were submitted.
        limit: launch only the first `limit` ranks of each stage.
        only: launch only these stages.
        ranks: stage -> launch only these ranks of it.
        lost: the result of `lost_results`, if it is known.
        factors: more memory and time for the jobs launched now.
    """
    launched = Launched(run.path)
    names = [stage.name for stage in record.spec.stages if only is None or stage.name in only]
    names = with_swarms(record.spec, names)
    standings = {name: Standing.of(look) for name, look in looks.items()}
    lost = lost_results(looks, names) if lost is None else lost
    launched.lost_outputs = [path for paths in lost.values() for path in paths]
    wanted = {name: wanted_ranks(record.spec.stage(name), limit, ranks.get(name)) for name in names}
    check_room(record.spec, looks, lost, limit, names, ranks)
    for name in names:
        spec = record.spec.stage(name)
        if is_used(record.spec, name):
            wanted[name] = range(spec.tasks)  # Fewer servers may not hold the model.
        decision = next_start(name, standings, lost, wanted[name])
        if isinstance(decision, Waiting):
            how = "" if spec.executor.type == "slurm" else f"; then run on this machine: stagger retry {run.path}"
            before = f"{', '.join(decision.stages)} {agreeing(len(decision.stages), 'is')}"
            logger.info(f"{name}: starts when {before} done{how}")
        else:
            if name not in record.fingerprints:
                made = Pipeline(record.spec, {name: steps_of(run.stage(record, name))}, record.outputs, record.names)
                plans = plan_stages(run.storage, [spec], made, completions_of(looks))
                record = save_plans(run, record, record.spec, plans, record.outputs, record.names)
                looks[name] = replace(looks[name], stage=run.stage(record, name))
                wanted[name] = wanted_ranks(plans[name].stage, limit, ranks.get(name))
                decision = decided(record, looks[name], decision, wanted[name])
            if decision.ranks and is_used(record.spec, name):
                reopen(run.stage(record, name))
                looks[name] = undone(looks[name], set(decision.ranks))
            looks[name] = launch_stage(run.stage(record, name), looks[name], decision.ranks, factors)
            standings[name] = Standing.of(looks[name])
            submitted = bool(decision.ranks) and spec.executor.type == "slurm"
            launched.submitted |= submitted
            if decision.ranks and not submitted:
                warn_of_foreign(record, looks, [name])
            if not submitted and ranks.get(name) is None:
                note_unfinished(launched, looks[name], wanted[name])
        launched.stages.append(stage_status(looks[name]))
    return launched


def with_swarms(spec: RunSpec, names: Sequence[str]) -> list[str]:
    """Stages with the swarms that they use, in the order of the run."""
    used = {swarm for name in names for swarm in spec.stage(name).uses}
    return [stage.name for stage in spec.stages if stage.name in used or stage.name in names]


def decided(record: RunRecord, look: Look, decision: Start, wanted: Collection[int]) -> Start:
    """The decision about a stage that has just been planned; another one if that has decided its number of ranks."""
    if look.stage.spec.sizing == "given":
        return decision
    start = Start([rank for rank in wanted if rank not in look.done and rank not in look.activity.ranks])
    check_limits(record.spec, {look.stage.name: len(start.ranks)}, {})
    return start


def check_room(
    spec: RunSpec,
    looks: Mapping[str, Look],
    lost: Collection[str],
    limit: int | None,
    only: Collection[str] | None = None,
    ranks: Mapping[str, set[int] | None] = MappingProxyType({}),
) -> None:
    """Raise StaggerError when limits of the cluster leave no room for the ranks that `run_stages` would start."""
    standings = {name: Standing.of(look) for name, look in looks.items()}
    names = with_swarms(spec, list(looks if only is None else only))
    wanted = {name: wanted_ranks(spec.stage(name), limit, ranks.get(name)) for name in names}
    decisions = {name: next_start(name, standings, lost, mine) for name, mine in wanted.items()}
    starting = {name: len(one.ranks) for name, one in decisions.items() if isinstance(one, Start)}
    check_limits(spec, starting, {} if limit else later_ranks(standings))


def completions_of(looks: Mapping[str, Look]) -> Completions:
    """The completion records that looks have found."""
    return lambda name: looks[name].completions


def later_ranks(standings: Mapping[str, Standing]) -> dict[str, int]:
    """Stage -> its number of ranks that are not done, for each stage that waits for others.

    >>> later_ranks({"a": Standing(2), "b": Standing(3, depends=("a",), done={0})})
    {'b': 2}
    """
    return {
        name: one.tasks - len(one.done)
        for name, one in standings.items()
        if not all(standings[other].is_done for other in one.depends)
    }


def wanted_ranks(stage: StageSpec, limit: int | None, chosen: set[int] | None = None) -> Collection[int]:
    """The ranks that a launch covers: the `chosen` ones, or the first `limit`, or all."""
    return range(min(limit or stage.tasks, stage.tasks)) if chosen is None else sorted(chosen)


def note_unfinished(launched: Launched, look: Look, expected: Collection[int]) -> None:
    """Record `expected` ranks that are neither done nor active: the launch has then not succeeded."""
    settled = look.activity.ranks | look.done
    if ranks := sorted(rank for rank in expected if rank not in settled):
        launched.unfinished[look.stage.name] = ranks
