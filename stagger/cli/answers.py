"""Shared by `launch`, `retry` and `blocks launch`: print the result."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from stagger.launch.launched import Launched

#: What JSON may hold as it is, though a terminal could obey it. All of it is within strings.
RAW = re.compile(r"[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def print_json(document: Any) -> None:
    r"""Print a document as JSON. Characters that could steer a terminal are escapes such as `\u009b`."""
    data = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    sys.stdout.write(RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", data.decode()))


def finish(launched: Launched, json: bool) -> int:
    """Print the state of the run after a launch, and return exit status 0. Raises RunFailed when ranks failed."""
    from stagger.cli import show

    if json:
        print_json(show.status_document(launched.run_dir, launched.stages))
    else:
        show.launched(launched)
    launched.raise_if_failed()
    return 0
