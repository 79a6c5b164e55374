"""What is wrong with a command line, in a person's words: the option or argument, and what to type instead.

The parser's own words differ from version to version; only its kinds of errors and their fields are used here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import annotated_types

from stagger.spec.expected import expected
from stagger.spec.nearest import close_to, nearest

#: What people type for commands and options that are called otherwise.
OTHER_NAMES = {
    "help": "--help",
    "version": "--version",
    "run": "launch",
    "submit": "launch",
    "start": "launch",
    "sbatch": "launch",
    "resume": "retry",
    "rerun": "retry",
    "restart": "retry",
    "stop": "cancel",
    "kill": "cancel",
    "scancel": "cancel",
    "squeue": "status",
    "log": "logs",
    "check": "doctor",
    "validate": "launch --dry-run",
}

#: An argument by its name in the help -> what it is, and an example.
ARGUMENTS = {
    "FILE": ("a pipeline file", "pipeline.yaml"),
    "NAME": ("the name of a ready pipeline", "quickstart"),
    "RUN": ("the run directory of a run", "runs/my_run"),
}


def sentence(error: Any, typed: Sequence[str]) -> str:
    """The message about an error of the parser. `typed` are the arguments of the command line."""
    kind = type(error).__name__
    command = command_of(error)
    if kind == "NoSuchOption":
        return unknown_option(error, command)
    if kind == "MissingParameter":
        return missing(error, command)
    if kind == "BadParameter":
        return wrong_value(error, typed)
    said = str(error.format_message())
    if kind == "BadOptionUsage":
        option = str(error.option_name)
        takes_none = "not take a value" in said
        return f"{option} takes no value; write {option} alone." if takes_none else f"{option} needs a value after it."
    if found := re.match(r"No such command '?([^']*?)'?[.]?(?: Did you mean.*)?$", said):
        return unknown_command(found[1], error, command)
    if found := re.search(r"extra argument.*\((.*)\)$", said):
        return f"{command.removeprefix('stagger ')} {takes(error)}; leave out {found[1]!r}."
    return said


def command_of(error: Any) -> str:
    """The command that was typed, without its options: `stagger blocks launch`."""
    names = []
    context = error.ctx
    while context is not None:
        names.append("stagger" if context.parent is None else str(context.info_name))
        context = context.parent
    return " ".join(reversed(names)) or "stagger"


def unknown_option(error: Any, command: str) -> str:
    """The message about an option that the command does not have."""
    option, head = str(error.option_name), command.removeprefix("stagger ")
    own = options_of(error.ctx.command)
    others = [name for name, found in commands_below(root_of(error.ctx).command) if option in options_of(found)]
    others = [
        name for name in others if not name.startswith("stagger blocks ") or option not in own_of_top(error, name)
    ]
    said = f"{head} has no option {option}"
    if option.startswith("--"):
        named = {one.lstrip("-"): one for one in own if one.startswith("--")}
        longer = [one for one in named if one.endswith(f"-{option[2:]}")]
        close = close_to(option[2:], list(named))
        if longer and not (close or "").startswith(option[2:]):
            close = longer[0]
        if close is not None and (not others or longer or close.startswith(option[2:])):
            return f"{said}; did you mean {named[close]}?{elsewhere(others, option)}"
    if others:
        where = "write it after that command" if hasattr(error.ctx.command, "commands") else "leave it out"
        return f"{said}: that is an option of {_listed(others)}; {where}."
    return f"{said}; see {command} --help."


def own_of_top(error: Any, name: str) -> list[str]:
    """The options of the command of the same name outside its group: `launch` for `stagger blocks launch`."""
    command = root_of(error.ctx).command.commands.get(name.rpartition(" ")[2])
    return options_of(command) if command is not None else []


def elsewhere(others: list[str], option: str) -> str:
    return f" ({option} is an option of {_listed(others)}.)" if others else ""


def unknown_command(name: str, error: Any, command: str) -> str:
    """The message about a command that does not exist, or a file or run in the place of the command."""
    known = list(error.ctx.command.commands)
    if command == "stagger" and os.path.isfile(name):
        return f"{name!r} is no command; did you mean: stagger launch {name}"
    if command == "stagger" and os.path.isdir(name):
        return f"{name!r} is no command; did you mean: stagger status {name}"
    if command == "stagger" and name in OTHER_NAMES:
        return f"There is no command {name!r}; use: stagger {OTHER_NAMES[name]}"
    return f"There is no command {name!r}; {nearest(name, known)}"


def missing(error: Any, command: str) -> str:
    """The message about an argument that is not given."""
    name = str(error.param.metavar or error.param.name).upper()
    what, example = ARGUMENTS.get(name, (f"a value for {name}", name))
    return f"{command.removeprefix('stagger ')} needs {what}; write for example: {command} {example}"


def wrong_value(error: Any, typed: Sequence[str]) -> str:
    """The message about a value that an option does not take."""
    option = error.param
    name = option.opts[0] if option.opts[0].startswith("-") else str(option.metavar or option.name)
    bounds: list[Any] = []
    kind = getattr(option, "type", option)
    if getattr(kind, "min", None) is not None:
        bounds.append(annotated_types.Ge(kind.min))
    if getattr(kind, "max", None) is not None:
        bounds.append(annotated_types.Le(kind.max))
    descriptor = getattr(option, "type_descriptor", None)
    hint = getattr(descriptor, "annotation", None) or (float if "float" in str(getattr(kind, "name", "")) else int)
    number = (get_args(hint) or (hint,))[0]
    value = next(reversed([*values_of(option.opts, typed)]), None)
    given = "" if value is None else f", not {value!r}"
    return f"{name}: expected {expected(number, bounds).words}{given}."


def values_of(names: Sequence[str], typed: Sequence[str]) -> Iterator[str]:
    """The values that the command line gives to an option."""
    for word, following in zip(typed, [*typed[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in names:
            yield value if equals else following


def takes(error: Any) -> str:
    """What arguments a command takes, in words."""
    names = [
        str(one.metavar or one.name).upper() for one in error.ctx.command.params if one.param_type_name == "argument"
    ]
    return f"takes {' and '.join(f'one {name}' for name in names)}" if names else "takes no arguments"


def options_of(command: Any) -> list[str]:
    return [name for one in command.params if one.param_type_name == "option" for name in one.opts]


def commands_below(group: Any, before: str = "stagger") -> Iterator[tuple[str, Any]]:
    """The commands of a group, by all that is typed for each, and those of its own groups."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_below(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def root_of(context: Any) -> Any:
    while context.parent is not None:
        context = context.parent
    return context


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
