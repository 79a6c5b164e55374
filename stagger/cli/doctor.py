"""`stagger doctor`: its options and its text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagger.cli.answers import print_json
from stagger.cli.options import Json, Options, Profile, storage_options
from stagger.errors import StaggerError
from stagger.terminal import say, say_lines

if TYPE_CHECKING:
    from stagger.doctor.check import Check
    from stagger.slurm.site import Site
    from stagger.spec.executors import SlurmSpec

SIGNS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


def doctor(
    name: Annotated[str, typer.Argument(help="With --write-profile: the name of the profile.", metavar="[NAME]")] = "",
    run_dir: Annotated[str | None, typer.Option(help="The run directory to check: a path or s3://...")] = None,
    partition: Annotated[str | None, typer.Option(help="The Slurm partition to check.")] = None,
    account: Annotated[str | None, typer.Option(help="The account of the jobs.")] = None,
    qos: Annotated[str | None, typer.Option(help="The QOS of the jobs.")] = None,
    time: Annotated[str | None, typer.Option(help="The time limit of the jobs to check, as in executor.time.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="OPTION=VALUE", help="An option of executor.sbatch, by its long name."),
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting of the profile; repeatable.")
    ] = None,
    profile: Profile = None,
    write_profile: Annotated[
        bool, typer.Option("--write-profile", help="Write a first profile from what Slurm says, if there is none.")
    ] = False,
    measure_start: Annotated[
        bool, typer.Option("--measure-start", help="Count the file-system calls of a task's start, and no more.")
    ] = False,
    measure_metadata: Annotated[
        str | None,
        typer.Option(
            "--measure-metadata",
            metavar="FOLDER",
            help="Measure for a few seconds how many metadata operations a shared folder answers, and no more.",
        ),
    ] = None,
    json: Json = False,
    options: Options = None,
) -> int:
    """Check this machine, Slurm and the storage, with the settings of a profile; one tiny job checks a compute node.

    Exit status 1 on a problem. Any setting can be checked: --sbatch constraint=a100 --set executor.env.conda=mine.
    """
    from stagger.doctor.checks import checks
    from stagger.doctor.new_profile import with_required_time
    from stagger.slurm.site import look_at_site
    from stagger.spec.models import NAME
    from stagger.spec.profiles import NONE
    from stagger.spec.site_settings import site_settings

    if measure_start or measure_metadata is not None:
        measurements(measure_start, measure_metadata, json)
        return 0
    if name and not write_profile:
        raise StaggerError(f"{name} is an argument of --write-profile; to check a profile, use --profile {name}.")
    if name and (name == NONE or not re.fullmatch(NAME, name)):
        raise StaggerError(f"{name!r} cannot name a profile; use letters, digits, and _ . - after the first.")
    given = {"partition": partition, "account": account, "qos": qos, "time": time}
    given = {key: value for key, value in given.items() if value is not None}
    changes = [*(f"executor.sbatch.{option.lstrip('-')}" for option in sbatch or ()), *(assignments or ())]
    spec, stored = site_settings(profile, changes, given)
    site = look_at_site() if write_profile else None
    if site is not None:
        spec = with_required_time(spec, site, os.getcwd())
    found = checks(run_dir, storage_options(options) or stored, spec)
    made = list(found) if json else show(found)
    text, path, problem = ("", "", "") if site is None else new_profile(name, site, spec, made)
    if json:
        document = {"checks": [vars(check) for check in made]}
        print_json(document | ({"profile": {"text": text, "written": path or None}} if write_profile else {}))
    elif write_profile:
        say()
        say_lines(text)
        if path:
            say(f"Written to {path}")
    if problem:
        raise StaggerError(problem)
    return 1 if any(check.state == "problem" for check in made) else 0


def measurements(start: bool, folder: str | None, json: bool) -> None:
    """Make the measurements of `--measure-start` and `--measure-metadata`, and print them. Raises StaggerError."""
    found: list[Check] = []
    more: dict[str, Any] = {}
    if start:
        from stagger.doctor.start import start_check

        found += [start_check()] if json else show([start_check()])
    if folder is not None:
        from stagger.doctor import metadata

        path = metadata.check_folder(folder)
        if not json:
            say(metadata.announcement(path), flush=True)
        rates = metadata.measured(path)
        check = metadata.check_of(path, rates)
        found += [check] if json else show([check])
        limit = metadata.limit_of(rates) if check.state == "ok" else None
        more = {"metadata": {"rates": [vars(rate) for rate in rates], "metadata_limit": limit}}
    if json:
        print_json({"checks": [vars(check) for check in found], **more})


def show(found: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made, and return all of them."""
    checks = []
    for check in found:
        say(f"{SIGNS[check.state]:<8} {check.name:<11} {check.text}", flush=True)
        checks.append(check)
    return checks


def new_profile(name: str, site: Site, spec: SlurmSpec, made: list[Check]) -> tuple[str, str, str]:
    """Make and write a profile. Returns its text, the path of its file, and why it was not written."""
    from stagger.doctor.new_profile import profile_text, write_profile

    text = profile_text(name or site.cluster or "site", site, spec, made)
    try:
        return text, write_profile(text), ""
    except StaggerError as error:
        return text, "", str(error)
