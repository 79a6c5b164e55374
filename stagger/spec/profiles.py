"""Profiles: named defaults for pipeline files, which a site, a team or a user keeps in configuration files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from stagger.errors import StaggerError
from stagger.spec.alternatives import without_replaced, written_in_full
from stagger.spec.base import Model
from stagger.spec.merging import has, leaves, merged
from stagger.spec.messages import validated
from stagger.spec.models import Name, SiteDefaults, StorageSpec
from stagger.spec.nearest import nearest
from stagger.spec.place import Place
from stagger.spec.references import expanded
from stagger.spec.secret_check import check_storage_options
from stagger.spec.yaml_file import Path, read_file
from stagger.storage.ownership import exposed, foreign, open_to_others, user_name
from stagger.storage.storage import is_local

#: The environment variable with the path of one more configuration file.
VARIABLE = "STAGGER_CONFIG"

#: The name that stands for no profile, not even the default one.
NONE = "none"

#: The type of executor that a profile is for, unless it says otherwise.
DEFAULT_KIND = "slurm"

#: Keys of `executor`, and of its `env`, that hold paths. In a profile, relative ones start at the folder of its file.
PATHS, ENV_PATHS = ("template", "log_dir", "chdir"), ("venv", "container")


class Profile(SiteDefaults, StorageSpec):
    """Defaults for pipeline files. `executor` is for Slurm unless its `type` says otherwise."""


class ConfigFile(Model):
    """A configuration file of stagger."""

    profiles: dict[Name, Profile] = {}
    """Name -> the defaults that pipeline files take with `profile: NAME` or `--profile NAME`."""
    default: Name | None = None
    """The profile of pipeline files that name none."""


class _Outline(Model):
    """A configuration file whose profiles are not checked yet: a mistake in one must not stop users of another."""

    profiles: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    default: Name | None = None


@dataclass(frozen=True)
class _Config:
    place: Place
    outline: _Outline


@dataclass(frozen=True)
class Chosen:
    """The defaults of one profile, merged from all configuration files.

    places: the path of each value -> the file and line that set it.
    """

    name: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[Path, str] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """The type of executor that the profile is for; None when it has no `executor`."""
        kind = self.values.get("executor", {}).get("type")
        return None if kind is None else str(kind)

    def below(self, written: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """`written`, whose values win, over those values of the profile that `keys` name."""
        mine = {key: self.values[key] for key in keys if key in self.values}
        executor = written.get("executor")
        if "executor" in mine and isinstance(executor, Mapping):
            mine["executor"] = without_replaced(mine["executor"], executor)
        return dict(merged(mine, dict(written)))

    def below_stage(self, stage: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a stage, whose values win, over those of the profile: none if it is for another executor."""
        executor = stage.get("executor")
        other = isinstance(executor, Mapping) and executor.get("type") != (self.kind or DEFAULT_KIND)
        return self.below(stage, () if other else SiteDefaults.model_fields)

    def elsewhere(self, written: Mapping[str, Any]) -> dict[Path, str]:
        """The places of the profile's values that `written` does not replace."""
        return {path: place for path, place in self.places.items() if not has(written, path)}


def user_file() -> str:
    """The path of the user's own configuration file."""
    import platformdirs  # Imported late: tasks read no configuration.

    return os.path.join(platformdirs.user_config_dir("stagger"), "config.yaml")


def config_files() -> list[str]:
    """The paths of the configuration files, weakest first: the installation's, the user's, that of $STAGGER_CONFIG."""
    files = [os.path.join(sys.prefix, "etc", "stagger", "config.yaml"), user_file()]
    if named := os.environ.get(VARIABLE):
        files.append(os.path.abspath(os.path.expanduser(named)))
    return files


def chosen(name: str | None, where: str) -> Chosen:
    """The profile `name`, or the default profile if that is None. `where` names the place that asks for it, in errors.

    Raises StaggerError when there is no such profile, or a configuration file has a mistake.
    """
    if name == NONE:
        return Chosen()
    configs = [_read(path) for path in config_files() if os.path.lexists(path) or path == _named()]
    for config in configs:
        if name is None and config.outline.default is not None:
            where = config.place.of(("default",))
    if name is None:
        defaults = [config.outline.default for config in configs if config.outline.default is not None]
        if not defaults or defaults[-1] == NONE:
            return Chosen()
        name = defaults[-1]
    holding = [config for config in configs if name in config.outline.profiles]
    if not holding:
        raise _unknown(name, where, configs)
    found = Chosen(name)
    for config in holding:
        found = _over(found, config, name)
    return found


def _named() -> str | None:
    """The file of $STAGGER_CONFIG: it must exist, unlike the others."""
    return config_files()[-1] if os.environ.get(VARIABLE) else None


def _read(path: str) -> _Config:
    """Read and check a configuration file, except for what its profiles hold."""
    _check_trusted(path)
    content, lines = read_file(path, "a configuration file: it must hold the key profiles")
    place = Place(path, lines)
    return _Config(place, validated(_Outline, content, place, ()))


def _check_trusted(path: str) -> None:
    """Raise StaggerError when another user may change a configuration file: its commands run in the user's jobs.

    The file that $STAGGER_CONFIG names may belong to anybody, the installation's to the owner of the installation.
    """
    try:
        info = os.stat(path)
    except OSError as error:
        named = f"; ${VARIABLE} names it: correct the variable, or unset it" if path == _named() else ""
        raise StaggerError(f"{path} cannot be read: {error.strerror}{named}.") from error
    if not stat.S_ISREG(info.st_mode):
        raise StaggerError(f"{path} is no regular file; a configuration file must be one.")
    owners = {os.stat(sys.prefix).st_uid} if path == config_files()[0] else set()
    if path != _named() and foreign(info) and info.st_uid not in owners:
        raise StaggerError(
            f"{path} belongs to {user_name(info.st_uid)}, and its commands would run in your jobs: remove it, or name"
            f" it in ${VARIABLE} if you trust its owner."
        )
    if reason := open_to_others(info):
        raise StaggerError(f"{path} {reason}, and its commands would run in your jobs: chmod go-w {path}")
    if reason := exposed(path):
        raise StaggerError(f"{path} is not safe: {reason}.")


def _unknown(name: str, where: str, configs: list[_Config]) -> StaggerError:
    names = sorted({name for config in configs for name in config.outline.profiles})
    files = ", ".join(config_files())
    if not names:
        return StaggerError(
            f"{where}: there is no profile {name!r}, for no configuration file has any; write one into one of: {files}"
        )
    return StaggerError(f"{where}: there is no profile {name!r}; {nearest(name, names)} Looked in {files}")


def _over(found: Chosen, config: _Config, name: str) -> Chosen:
    """The profile `found` so far, below what one more configuration file says about it."""
    lines = {path[2:]: line for path, line in config.place.lines.items() if path[:2] == ("profiles", name)}
    place = Place(config.place.file, lines)
    values = dict(config.outline.profiles[name])
    check_storage_options(values.get("storage_options"), place)
    values = {key: expanded(item, (key,), place) for key, item in values.items()}
    if isinstance(executor := values.get("executor"), dict):
        executor = {"type": found.kind or DEFAULT_KIND, **executor}
        values["executor"] = _from_its_folder(executor, os.path.dirname(config.place.file))
    validated(Profile, values, place, ())
    if "executor" in values:
        values["executor"] = written_in_full(values["executor"])
    other = found.kind is not None and values.get("executor", {}).get("type", found.kind) != found.kind
    both = found.below(values, [key for key in found.values if not (other and key == "executor")])
    places = {path: place.line(path) if has(values, path) else found.places[path] for path in leaves(both)}
    return Chosen(name, both, places)


def _from_its_folder(executor: dict[str, Any], folder: str) -> dict[str, Any]:
    """The settings of an executor with relative paths made absolute, starting at `folder`."""
    found = {key: _from(folder, value) if key in PATHS else value for key, value in executor.items()}
    if isinstance(env := found.get("env"), dict):
        found["env"] = {key: _from(folder, value) if key in ENV_PATHS else value for key, value in env.items()}
    return found


def _from(folder: str, path: Any) -> Any:
    if not isinstance(path, str) or not path or path.startswith("~") or not is_local(path):
        return path
    return os.path.join(folder, path.removeprefix("file://"))
