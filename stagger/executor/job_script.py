"""Renders job scripts from the templates in slurm_templates/. Every value is quoted; an undefined one is an error."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagger.bundle import task_arguments
from stagger.errors import StaggerError, one_line
from stagger.executor.end_job import end_options
from stagger.ranks import format_ranks
from stagger.shipped import shipped
from stagger.slurm.answers import parse_time
from stagger.spec.executors import MEMORY_OPTIONS, EnvSpec, SlurmSpec
from stagger.start.delays import GOLDEN, RESTART_SALT, Slots
from stagger.task import CREW
from stagger.task.crew_order import CrewOrder

#: Number of times that an end job leaves a node which cannot run it.
OTHER_NODES = 5

#: Seconds before its time limit at which Slurm signals a job, so that it can commit and requeue itself.
WARNING_S = 120


@dataclass(frozen=True)
class ScriptContext:
    """The values that all scripts of one launch share.

    `log_dir` is the folder for the jobs' own output. `settings` is the path of the settings of the tasks. `tasks` is
    the number of ranks of the stage. `template` is the template of an array's script, unless the user set one.
    `warning_s` is the number of seconds before its time limit at which Slurm signals a job.
    """

    spec: SlurmSpec
    run_dir: str
    stage: str
    number: int
    cwd: str
    log_dir: str
    settings: str
    tasks: int = 1
    template: str = "array.sbatch.j2"
    warning_s: int = WARNING_S


def array_script(
    context: ScriptContext,
    name: str,
    ranks: Sequence[Sequence[int]],
    throttle: int | None,
    window_s: int,
    slots: Slots | None = None,
) -> str:
    """The script of one job array; element i runs the ranks `ranks[i]`.

    `slots` set the jobs' start delays, in a window of `window_s` seconds. Without them each job draws a random delay.
    """
    spec = context.spec
    every = [rank for job in ranks for rank in job]
    dense = every == list(range(every[0], every[-1] + 1))
    array = f"0-{len(ranks) - 1}" + (f"%{throttle}" if throttle is not None else "")
    options: dict[str, Any] = {"job-name": name, "array": array, "output": f"{percent(context.log_dir)}/%A_%a.out"}
    spec = fitted(spec, max(map(len, ranks)))
    nodes = str(max(spec.nodes_per_task, spec.nodes_per_job))
    options |= {"nodes": nodes, "ntasks": nodes, **resources(spec)}
    options |= {
        "chdir": spec.chdir,
        "open-mode": "append",
        "signal": f"B:USR2@{warning_s(spec.time_limit, context.warning_s)}",
    }
    if "no-requeue" not in spec.sbatch:
        options["requeue"] = True
    script = render(
        spec.template or context.template,
        options=sbatch_options({**options, **spec.sbatch}),
        directives=spec.directives,
        title=f"Stage {one_line(context.stage)} of {one_line(context.run_dir)}, launch {context.number}.",
        window_s=window_s,
        slots=slots,
        golden=GOLDEN,
        restart_salt=RESTART_SALT,
        cwd=context.cwd,
        env=quoted_env(spec.env),
        dense=dense,
        first_rank=every[0],
        last_rank=every[-1],
        ranks_per_job=len(ranks[0]),
        job_ranks=[format_ranks(job) for job in ranks],
        python=command(spec, context.cwd, context.log_dir),
        task=shlex.join(task_arguments()),
        settings=context.settings,
    )
    if left_out := [line for line in spec.directives if line not in script.splitlines()]:
        raise StaggerError(
            f"The job script template {spec.template} leaves out executor.directives ({left_out[0]}): print each of"
            " `directives` on a line of its own, after the options."
        )
    return script


def finalize_script(context: ScriptContext, name: str, after: Sequence[str]) -> str:
    """The script of the end job, which runs when the arrays with the job ids `after` have ended."""
    options: dict[str, Any] = {"job-name": name, "output": f"{percent(context.log_dir)}/finalize-%j.out"}
    options |= {"open-mode": "append", "nodes": "1", "ntasks": "1", "chdir": context.spec.chdir}
    options |= {"requeue": "no-requeue" not in context.spec.sbatch}
    options |= {"dependency": f"afterany:{':'.join(after)}", **end_options(context.spec, context.tasks)}
    return render(
        "finalize.sbatch.j2",
        options=sbatch_options(options),
        title=f"The end of stage {one_line(context.stage)} of {one_line(context.run_dir)}, launch {context.number}.",
        python=sys.executable,
        run_dir=context.run_dir,
        stage=context.stage,
        settings=context.settings,
        other_nodes=OTHER_NODES,
    )


def fitted(spec: SlurmSpec, ranks: int) -> SlurmSpec:
    """The settings of a job of `ranks` ranks, which may need fewer processors and nodes than most: in a retry.

    >>> spec = SlurmSpec(type="slurm", ranks_per_job=512, ranks_at_once=128, nodes_per_job=4)
    >>> few = fitted(spec, 130)
    >>> few.ranks_at_once, few.nodes_per_job
    (128, 2)
    """
    if spec.ranks_at_once == "auto":
        return spec.model_copy(update={"nodes_per_job": min(spec.nodes_per_job, ranks)})
    at_once = min(spec.ranks_at_once, ranks)
    return spec.model_copy(
        update={"ranks_at_once": at_once, "nodes_per_job": min(spec.nodes_per_job, math.ceil(ranks / at_once))}
    )


def resources(spec: SlurmSpec) -> dict[str, Any]:
    """The resources of a job, as sbatch options."""
    options: dict[str, Any] = {"partition": spec.partition, "time": spec.time}
    if spec.ranks_at_once == "auto":
        options |= whole_nodes(spec)
    else:
        options["cpus-per-task"] = str(spec.cpus_per_task * spec.ranks_at_once)
        options["mem-per-cpu"] = f"{round(spec.mem_per_cpu_gb * 1024)}M" if spec.mem_per_cpu_gb else None
        options["gres"] = f"gpu:{spec.gpus_per_task * spec.ranks_at_once}" if spec.gpus_per_task else None
    options |= {"qos": spec.qos, "account": spec.account}
    return {option: value for option, value in options.items() if value}


def whole_nodes(spec: SlurmSpec) -> dict[str, Any]:
    """The sbatch options for whole nodes with all of their memory, unless `executor.sbatch` limits them."""
    limits = spec.sbatch.keys()
    return {
        "exclusive": limits.isdisjoint(("cpus-per-task", "mincpus")),
        "mem": "0" if limits.isdisjoint(MEMORY_OPTIONS) else None,
        "gres": f"gpu:{spec.gpus_per_task}" if spec.gpus_per_task else None,
    }


def sbatch_options(options: Mapping[str, Any]) -> list[str]:
    """`#SBATCH` options, quoted; true gives a bare option, false leaves the option out.

    Raises StaggerError when a value has a line break: bash would run the rest of it as a command.
    """
    lines = []
    for option, value in options.items():
        if value is True:
            lines.append(f"--{option}")
        elif value is not False:
            text = str(value)
            if any(ord(character) < 32 for character in text):
                raise StaggerError(f"The value {text!r} of sbatch's {option} has a line break or control character.")
            lines.append(f"--{option}={shlex.quote(text)}")
    return lines


def percent(path: str) -> str:
    """A path escaped for sbatch's --output, where % starts a pattern."""
    return path.replace("%", "%%")


def quoted_env(env: EnvSpec) -> dict[str, Any]:
    return {**env.model_dump(), "venv": activate_script(env.venv) if env.venv else None}


def activate_script(venv: str) -> str:
    """The activate script of a virtual environment. `venv` is its folder or the script itself."""
    return venv if venv.endswith("/activate") else f"{venv}/bin/activate"


def interpreter(env: EnvSpec) -> str:
    """The Python interpreter of the jobs as a quoted shell word: this process's, or their environment's."""
    if env.venv:
        return shlex.quote(os.path.join(os.path.dirname(activate_script(env.venv)), "python"))
    if env.conda:
        return '"$CONDA_PREFIX"/bin/python'
    if env.container:
        return "python"
    return shlex.quote(sys.executable)


def warning_s(limit: str | None, wanted: int = WARNING_S) -> int:
    """Seconds before a job's time limit at which Slurm signals it: `wanted`, but at most a tenth of the limit."""
    limit_s = parse_time(limit) if limit else None
    return wanted if limit_s is None else max(1, min(wanted, limit_s // 10))


def command(spec: SlurmSpec, cwd: str, log_dir: str) -> str:
    """The shell command that starts Python for a job's ranks, on each node of the job and inside its container."""
    words = interpreter(spec.env)
    if spec.env.container:
        arguments = [f"--pwd={cwd}", *spec.env.container_args, spec.env.container]
        words = f"apptainer exec {shlex.join(arguments)} {words}"
    if spec.nodes_per_task > 1:
        words = f"{on_each_of(spec.nodes_per_task, spec.cpus_per_task)} --kill-on-bad-exit=1 {words}"
    if spec.nodes_per_job > 1:
        words = f"{crews(spec)} {words}"
    return f"/usr/bin/env {CREW}={shlex.quote(str(crew_order(spec, log_dir)))} {words}" if spec.has_crew else words


def crews(spec: SlurmSpec) -> str:
    """The shell command that starts a crew on each node of a job. No crew ends because another has ended.

    The first process needs srun, which a container lacks.
    """
    python = shlex.quote(sys.executable) if spec.env.container else interpreter(spec.env)
    cpus = None if spec.ranks_at_once == "auto" else spec.cpus_per_task * spec.ranks_at_once
    return (
        f"{python} -I -m stagger.task.several_nodes {on_each_of(spec.nodes_per_job, cpus)}"
        " --export=ALL --cpu-bind=none --kill-on-bad-exit=0 --wait=0"
    )


def on_each_of(nodes: int, cpus: int | None) -> str:
    """The srun command for one process on each node. Since Slurm 22.05 srun has to be given the number of processors
    (`cpus`; None for whole nodes): otherwise it would bind the process to one.
    """
    return f"srun --nodes={nodes} --ntasks-per-node=1" + (f" --cpus-per-task={cpus}" if cpus else "")


def crew_order(spec: SlurmSpec, log_dir: str) -> CrewOrder:
    """What a job asks of its crews."""
    mib = round((spec.mem_per_cpu_gb or 0) * 1024 * spec.cpus_per_task)
    return CrewOrder(
        at_once=0 if spec.ranks_at_once == "auto" else spec.ranks_at_once,
        cpus=spec.cpus_per_task,
        gpus=spec.gpus_per_task,
        mib=mib,
        requested=int(bool(mib) or not spec.sbatch.keys().isdisjoint(MEMORY_OPTIONS)),
        notes=os.path.abspath(log_dir),
    )


def render(template: str, **values: Any) -> str:
    """Fill `values` into a template. `template` is a user's file or the name of a shipped one.

    A user's template runs in a sandbox: a dry run renders it before anybody has to trust it. Raises StaggerError when
    the template is missing or broken, or uses a value that is not in `values`.
    """
    ours = str(shipped("slurm_templates"))
    if not os.path.isfile(template):
        if os.path.dirname(template) or not os.path.isfile(os.path.join(ours, template)):
            raise StaggerError(
                f"There is no job script template {template}; give an existing path, or leave `template` out."
            )
        return _rendered([ours], template, values)
    from stagger.executor.sandbox import within_limits  # Imported late: only launches need jinja2.

    folder, name = os.path.split(os.path.abspath(template))
    try:
        return within_limits(lambda: _rendered([folder, ours], name, values))
    except StaggerError as error:
        raise StaggerError(f"The job script template {template} cannot be rendered: {error}.") from error


def _rendered(folders: list[str], name: str, values: dict[str, Any]) -> str:
    from stagger.executor.sandbox import ScriptEnvironment

    environment = ScriptEnvironment(folders)
    environment.filters["quote"] = shlex.quote
    return environment.get_template(name).render(values)
