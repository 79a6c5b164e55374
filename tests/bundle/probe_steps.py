"""A step that notes what user code sees of its interpreter. Copied beside pipeline files as my_probe."""

from __future__ import annotations

import builtins
import importlib.metadata
import importlib.resources
import importlib.util
import inspect
import json
import multiprocessing
import os
import pickle
import pkgutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import stagger
import stagger.pipeline.chain
import stagger.ranks
from stagger import Document


def seen() -> dict[str, Any]:
    """What this process sees."""
    return {
        "path": sys.path,
        "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix],
        "builtins": [name for name in ("exit", "quit", "help", "copyright", "customized") if hasattr(builtins, name)],
        "behind a finder": importlib.util.find_spec("behind_a_finder") is not None,
        "missing": importlib.util.find_spec("no_such_module"),
        "children": subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
    }


def child(pipe: Any) -> None:
    pipe.send(seen())


def of_children() -> dict[str, Any]:
    """What processes that multiprocessing starts see."""
    found = {}
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,))
        process.start()
        found[method] = ours.recv()
        process.join()
    return found


def trace() -> list[str]:
    """The places of an error inside stagger, without those of the interpreter that led to this step."""
    try:
        stagger.ranks.parse_ranks("no ranks")
    except Exception as error:
        return [f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in traceback.extract_tb(error.__traceback__)]
    return []


def first(folder: str) -> str | None:
    """Where isal is found once `folder` comes first."""
    sys.path.insert(0, folder)
    module: Any = importlib.import_module("isal.igzip")
    return str(module.__file__)


def probe(data: Any, rank: int, world_size: int) -> Iterator[Document]:
    main = sys.modules["__main__"]
    module: Any = stagger.ranks
    facts = {
        **seen(),
        "processes": of_children() if os.environ.get("CHILDREN") else None,
        "argv": sys.argv[:2],
        "main": [main.__file__, main.__spec__ and main.__spec__.name, main.__package__],
        "module": [module.__file__, module.__cached__, module.__package__, module.__spec__ and module.__spec__.origin],
        "package": list(stagger.__path__),
        "source": [inspect.getsource(stagger.ranks.parse_ranks), inspect.getsource(json.dumps)],
        "signature": str(inspect.signature(Document)),
        "resource": importlib.resources.files("stagger").joinpath("py.typed").is_file(),
        "data": pkgutil.get_data("stagger", "ranks.py") is not None,
        "submodules": [one.name for one in pkgutil.iter_modules(stagger.__path__)],
        "version": importlib.metadata.version("orjson"),
        "pickled": pickle.loads(pickle.dumps(Document("text", "id"))) == Document("text", "id"),
        "trace": trace(),
        "first": first(os.environ["FIRST"]) if "FIRST" in os.environ else None,
        "loaded from": [os.path.relpath(json.__file__, os.__file__), stagger.pipeline.chain.__doc__],
    }
    yield Document(json.dumps(facts, indent=1), "facts")
