"""Makes a bundle: `python -I -S -c MAKE PATH MODULE...` with the Python that tasks will run.

A bundle is: the hash of its head, 8 bytes; the length of the head, 8 bytes; the head (the code of loader.py, facts of
this Python, an index of modules), by `marshal`; the modules' code, and that of the texts and regular expressions that
they compile; a manifest in JSON of the files that it was made from, which a launch checks; the length of the manifest,
8 bytes.
"""

from __future__ import annotations

import _imp
import _sre  # type: ignore[import-not-found]
import builtins
import contextlib
import datetime
import importlib
import itertools
import json
import marshal
import os
import platform
import re
import site
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ExtensionFileLoader, PathFinder, SourceFileLoader
from types import CodeType, SimpleNamespace
from typing import Any

from stagger.bundle import loader

#: The program that makes a bundle. It records the lines of code in .pth files, which `site` executes.
MAKE = """import site, sys
lines = []
def note(line):
    sitedir = sys._getframe(1).f_locals.get("sitedir", "")
    exec(line)
    lines.append((sitedir, line))
site.exec = note
site.main()
from stagger.bundle.make import make
make(sys.argv[1], sys.argv[2:], lines)
"""

#: What `datetime` is from Python 3.12 on. Until then it first makes each class in Python, and then takes the one in C.
DATETIME = f"""from _datetime import *
from _datetime import __doc__
import sys
__all__ = {datetime.__all__!r}
"""

#: Modules that every task imports, and what these import late. Those of the stage's steps and storage are added.
EVERY_TASK = (
    "stagger.task.__main__",
    "stagger.task.commit",
    "stagger.task.attempt_records",
    "stagger.steps.reader",
    "stagger.steps.writer",
    "stagger.pipeline.read_ahead",
    "stagger.pipeline.compression",
    "stagger.pipeline.decompression",
    "stagger.storage.local_files",
    "stagger.storage.late_files",
    "stagger.start.delays",
    "isal.igzip",
    "zstandard",
    "queue",
    "site",
    "subprocess",
)


def make(path: str, modules: Sequence[str], lines: list[tuple[str, str]]) -> None:
    """Import the modules, and write what this has imported to `path`: all at once. Raises OSError."""
    compiled = noted_texts()
    for name in (*EVERY_TASK, *modules):
        with contextlib.suppress(Exception):  # An optional one is not installed.
            importlib.import_module(name)
    new = f"{path}.{os.getpid()}"
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content(lines, compiled))
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def noted_texts() -> dict[str, dict[str, CodeType]]:
    """The code of texts that modules compile from now on, by module (`loader.COMPILING`)."""
    compiled: dict[str, dict[str, CodeType]] = {}
    for module, name in loader.COMPILING.items():
        compiled[module] = {}
        vars(importlib.import_module(module))[name] = noting(compiled[module], name)
    return compiled


def noting(codes: dict[str, CodeType], name: str) -> Callable[..., Any]:
    """The built-in `exec`, `eval` or `compile`, which adds the code of each text to `codes`."""
    mode = "exec" if name == "exec" else "eval"

    def call(text: str, *more: Any) -> Any:
        codes[text] = compile(text, "<string>", mode, dont_inherit=True)
        return codes[text] if name == "compile" else getattr(builtins, name)(codes[text], *more)

    return call


def regexes() -> dict[tuple[str | bytes, int], tuple[Any, ...]]:
    """What `_sre.compile` needs for each regular expression that this process has compiled, by its text and flags."""
    compiler: Any = importlib.import_module(loader.REGEX_COMPILER)
    codes: dict[tuple[str | bytes, int], tuple[Any, ...]] = {}
    compiler._sre = SimpleNamespace(**(vars(_sre) | {"compile": lambda text, *code: code}))
    try:
        for text, flags in (("", 0), *((text, flags) for _, text, flags in re._cache)):  # type: ignore[attr-defined]
            all_flags, code, *groups = compiler.compile(text, flags)
            numbers = list(map(int, code))  # marshal refuses those that have names.
            codes[text, flags] = (all_flags, numbers, *groups)
    finally:
        compiler._sre = _sre
    return codes


def content(lines: list[tuple[str, str]], compiled: dict[str, dict[str, CodeType]]) -> bytes:
    """The bundle of the modules that this process has imported, with the code of what they compile."""
    library = [path for path in sys.path if path.startswith(os.path.dirname(os.__file__)) and "-packages" not in path]
    packages = [path for path in sys.path if os.path.basename(path).endswith("-packages") and os.path.isdir(path)]
    guarded = tuple(f"{folder}{os.sep}" for folder in (*library, *packages))
    index: dict[str, loader.Entry] = {}
    codes: list[bytes] = []
    files = {sys.executable: loader.stamp(sys.executable)}
    end = 0
    for name, file, stamp, code in found():
        files[file] = stamp
        checked = None if file.startswith(guarded) else stamp
        index[name] = (file, checked, end, end + len(code), _imp.source_hash(0, code) if code else b"")
        codes.append(code)
        end += len(code)
    code = marshal.dumps({**compiled, loader.REGEX_COMPILER: regexes()})
    codes.append(code)
    known = list(itertools.takewhile(lambda path: path.endswith(".zip") or path in (*library, *packages), sys.path))
    facts = {
        "python": (sys.version, sys.executable),
        "folders": {folder: loader.stamp(folder) for folder in packages},
        "path": sys.path,
        "sys": {name: getattr(sys, name) for name in ("prefix", "exec_prefix", "_home") if hasattr(sys, name)},
        "user_site": site.ENABLE_USER_SITE,
        "lines": lines,
        "customized": "sitecustomize" in sys.modules,
        "known": len(known),
        "names": top_names(known).union(sys.builtin_module_names),
        "platform": {name: getattr(platform, name)() for name in loader.PLATFORM.values()},
        "compiled": (end, end + len(code), _imp.source_hash(0, code)),
    }
    head = marshal.dumps((SourceFileLoader(loader.__name__, loader.__file__).get_code(loader.__name__), facts, index))
    folders = {folder: loader.stamp(folder) for folder in (*library, *packages)}
    manifest = json.dumps({"files": files, "folders": folders}).encode()
    return b"".join(
        [
            _imp.source_hash(sys.hexversion, head),
            len(head).to_bytes(8, "little"),
            head,
            *codes,
            manifest,
            len(manifest).to_bytes(8, "little"),
        ]
    )


def top_names(folders: Sequence[str]) -> frozenset[str]:
    """The names of top-level modules and folders in folders of `sys.path`."""
    names: set[str] = set()
    for folder in folders:
        if os.path.isfile(folder):  # A zip file of the standard library.
            names.update(sys.stdlib_module_names)
        elif os.path.isdir(folder):
            names.update(name.partition(".")[0] for name in os.listdir(folder))
    return frozenset(names)


def found() -> Iterable[tuple[str, str, loader.Stamp | None, bytes]]:
    """(name, file, stamp, code) of each imported module that lies in a file; an extension module has no code.

    The stamp is older than the code: of a file that changes meanwhile, it does not fit.
    """
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name != name:  # Another module has taken its place, as that of collections.abc.
            folders = getattr(sys.modules.get(name.rpartition(".")[0]), "__path__", None)
            spec = PathFinder.find_spec(name, folders) if folders else None
        if spec is None or not spec.has_location:
            continue
        stamp = loader.stamp(spec.origin)
        if type(spec.loader) is SourceFileLoader:
            code = compile(DATETIME, spec.origin, "exec") if name == "datetime" else spec.loader.get_code(name)
            yield name, spec.origin, stamp, marshal.dumps(code)
        elif type(spec.loader) is ExtensionFileLoader:
            yield name, spec.origin, stamp, b""
