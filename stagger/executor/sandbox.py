"""Renders a job script template that nobody has read yet: in a sandbox, and in a process with little time and memory.

The sandbox keeps a template from everything but its values. The limits keep it from loops and texts without end.
"""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stagger.errors import StaggerError

#: Bytes of a job script: Slurm's default max_script_size (slurm.conf(5)).
SCRIPT_BYTES = 4 * 2**20

#: CPU seconds and bytes of memory for rendering a template.
CPU_S, MEMORY_BYTES = 5, 512 * 2**20


class ScriptEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with the settings for scripts: an undefined value is an error."""

    def __init__(self, folders: list[str]) -> None:
        super().__init__(
            loader=jinja2.FileSystemLoader(folders),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )


def within_limits(render: Callable[[], str]) -> str:
    """The text that `render` returns. It runs in a child of this process, below CPU_S and MEMORY_BYTES.

    Raises StaggerError when it raises, exceeds the limits, or returns more than SCRIPT_BYTES.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of a fork beside threads: the child uses none of theirs.
        child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            _limit()
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(_answer(render))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            state, text = pipe.read(1), pipe.read(SCRIPT_BYTES + 1)
    finally:
        os.waitpid(child, 0)  # If it still writes, it ends now: nobody reads from the pipe any more.
    if not state:
        raise StaggerError(f"it takes more than {CPU_S} s, or more memory than a script needs")
    if len(text) > SCRIPT_BYTES:
        raise StaggerError(f"the script has more than {SCRIPT_BYTES:,} bytes, which Slurm refuses")
    if state == b"!":
        raise StaggerError(text.decode())
    return text.decode()


def _limit() -> None:
    with open("/proc/self/statm", "rb") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_S
    for limit, value in (
        (resource.RLIMIT_AS, mapped + MEMORY_BYTES),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _answer(render: Callable[[], str]) -> bytes:
    """`=` and the text, or `!` and the reason why there is none."""
    try:
        return b"=" + render().encode()
    except jinja2.TemplateNotFound as error:
        return f"!there is no template {error.name}".encode()
    except jinja2.TemplateError as error:
        return f"!{error}".rstrip(".").encode()
    except Exception as error:  # The template is the user's: it can raise anything.
        return f"!{type(error).__name__}: {error}".encode()
