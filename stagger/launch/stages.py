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
from stagger.launch.local_swarms import LocalSwarms
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
    names = with_swarms(record.spec, [one.name for one in record.spec.stages if only is None or one.name in only])
    lost = lost_results(looks, names) if lost is None else lost
    check_room(record.spec, looks, lost, limit, names, ranks)
    with LocalSwarms() as swarms:
        starting = _Starting(run, record, looks, limit, ranks, lost, factors, swarms, names)
        for number, name in enumerate(names):
            starting.stage(name)
            starting.end_swarms(names[number + 1 :])
    launched = starting.launched
    launched.stages = [stage_status(looks[name]) for name in names]
    return launched


class _Starting:
    """Starts the stages of a run, one after another. The arguments are as for `run_stages`."""

    def __init__(
        self,
        run: RunFolder,
        record: RunRecord,
        looks: dict[str, Look],
        limit: int | None,
        ranks: Mapping[str, set[int] | None],
        lost: Mapping[str, Mapping[str, Lost]],
        factors: Factors,
        swarms: LocalSwarms,
        names: Collection[str],
    ) -> None:
        self.run = run
        self.record = record
        self.looks = looks
        self.limit = limit
        self.ranks = ranks
        self.lost = lost
        self.factors = factors
        self.swarms = swarms
        self.names = names
        self.standings = {name: Standing.of(look) for name, look in looks.items()}
        self.launched = Launched(run.path)
        self.launched.lost_outputs = [path for paths in lost.values() for path in paths]

    def stage(self, name: str) -> None:
        """Start a stage, unless it has to wait."""
        decision = next_start(name, self.standings, self.lost, self._wanted(name))
        if isinstance(decision, Waiting):
            self._say_waiting(name, decision)
            return
        if name not in self.record.fingerprints:
            self._plan(name)
            decision = decided(self.record, self.looks[name], decision, self._wanted(name))
        if is_used(self.record.spec, name) and (decision.ranks or self._is_needed(name)):
            if not set(self.standings[name].users) & set(self.names):
                logger.info(f"{name}: starts with the stages that use it: stagger retry {self.run.path}")
                return
            reopen(self.run.stage(self.record, name))
            self.looks[name] = undone(self.looks[name], set(decision.ranks))
            if decision.ranks and self.record.spec.stage(name).executor.type == "local":
                self._start_beside(name, decision.ranks)
                return
        self._launched(name, self._launch(name, decision.ranks), decision.ranks)

    def end_swarms(self, left: Collection[str]) -> None:
        """End the swarms on this machine whose users have had their turn: none is among the stages that are `left`."""
        for name in self.swarms.names:
            users = self.standings[name].users
            if not set(users) & set(left):
                done = all(self.standings[user].is_done for user in users)
                why = f"{', '.join(users)} {agreeing(len(users), 'is')} done" if done else "its users have ended"
                self._launched(name, self.swarms.end(name, self.looks[name], why), range(self.standings[name].tasks))

    def _is_needed(self, name: str) -> bool:
        """Whether a user of a swarm, among the stages that start, is not done."""
        return any(user in self.names and not self.standings[user].is_done for user in self.standings[name].users)

    def _wanted(self, name: str) -> Collection[int]:
        stage = self.looks[name].stage.spec
        if is_used(self.record.spec, name):
            return range(stage.tasks)  # Fewer servers may not hold the model.
        return wanted_ranks(stage, self.limit, self.ranks.get(name))

    def _say_waiting(self, name: str, decision: Waiting) -> None:
        local = self.record.spec.stage(name).executor.type != "slurm"
        how = f"; then run on this machine: stagger retry {self.run.path}" if local else ""
        before = f"{', '.join(decision.stages)} {agreeing(len(decision.stages), 'is')}"
        logger.info(f"{name}: starts when {before} done{how}")

    def _plan(self, name: str) -> None:
        """Plan a stage, whose input is complete only now."""
        record = self.record
        steps = {name: steps_of(self.run.stage(record, name))}
        made = Pipeline(record.spec, steps, record.outputs, record.names)
        plans = plan_stages(self.run.storage, [record.spec.stage(name)], made, completions_of(self.looks))
        self.record = save_plans(self.run, record, record.spec, plans, record.outputs, record.names)
        self.looks[name] = replace(self.looks[name], stage=self.run.stage(self.record, name))

    def _launch(self, name: str, ranks: list[int]) -> Look:
        return launch_stage(self.run.stage(self.record, name), self.looks[name], ranks, self.factors)

    def _start_beside(self, name: str, ranks: list[int]) -> None:
        """Run the servers of a swarm on this machine, beside the stages that use it."""
        number = len(self.looks[name].launches) + 1
        self.swarms.start(self.run.stage(self.record, name), number, lambda: self._launch(name, ranks))

    def _launched(self, name: str, look: Look, ranks: Collection[int]) -> None:
        """Note a stage that has run, or was submitted."""
        self.looks[name] = look
        self.standings[name] = Standing.of(look)
        submitted = bool(ranks) and look.stage.spec.executor.type == "slurm"
        self.launched.submitted |= submitted
        if ranks and not submitted:
            warn_of_foreign(self.record, self.looks, [name])
        if not submitted and self.ranks.get(name) is None:
            note_unfinished(self.launched, look, self._wanted(name))


def with_swarms(spec: RunSpec, names: Sequence[str]) -> list[str]:
    """Stages with the swarms that they use, in the order in which they start: a swarm right before its first user."""
    ordered: list[str] = []
    for name in names:
        if not any(name in spec.stage(other).uses for other in names):
            ordered += [*spec.stage(name).uses, name]
    return list(dict.fromkeys(ordered))


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
