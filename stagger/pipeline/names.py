"""What the names of steps and objects refer to: `read_jsonl`, `module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from stagger.errors import StaggerError

#: Name in a pipeline file -> module and class of the step. The module is imported when a pipeline names the step.
BUILTIN = {
    "embed_blocks": "stagger.models.steps:EmbedBlocks",
    "filter": "stagger.steps.filter:Filter",
    "read_arrow": "stagger.steps.arrow:ReadArrow",
    "read_csv": "stagger.steps.csv:ReadCsv",
    "read_dataset": "stagger.steps.dataset:ReadDataset",
    "read_jsonl": "stagger.steps.jsonl:ReadJsonl",
    "read_parquet": "stagger.steps.parquet:ReadParquet",
    "read_text": "stagger.steps.text:ReadText",
    "read_warc": "stagger.steps.warc:ReadWarc",
    "score_blocks": "stagger.models.steps:ScoreBlocks",
    "write_jsonl": "stagger.steps.jsonl:WriteJsonl",
    "write_parquet": "stagger.steps.parquet_writer:WriteParquet",
}


#: Called after each import of a user's module, which may have changed what all modules share: datatrove replaces the
#: handlers of loguru.
after_import: list[Callable[[], None]] = []


def resolve(use: str) -> Any:
    """The class or function that a step's name refers to: a built-in name, or `module:name`.

    Raises StaggerError with the reason when it cannot be imported.
    """
    module, colon, name = BUILTIN.get(use, use).partition(":")
    if not colon:
        raise _unknown(use)
    try:
        is_new = module not in sys.modules
        target: Any = importlib.import_module(module)
        if is_new:
            for call in after_import:
                call()
    except (Exception, SystemExit) as error:  # The module is the user's: its import can raise anything.
        hint = install_hint(error, module)
        raise StaggerError(f"{use!r} cannot be imported: {type(error).__name__}: {error}{hint}.") from error
    for part in name.split("."):
        if not hasattr(target, part):
            import difflib

            close = difflib.get_close_matches(part, [one for one in vars(target) if not one.startswith("_")], n=1)
            meant = f"; did you mean {close[0]!r}?" if close else "."
            raise StaggerError(f"{use!r} cannot be imported: {module} has no {part!r}{meant}")
        target = getattr(target, part)
    return target


def _unknown(use: str) -> StaggerError:
    """The error for a name without a colon that no built-in step has."""
    import difflib

    known = {name.replace("_", ""): name for name in BUILTIN}
    close = difflib.get_close_matches(use.lower().replace("_", ""), known, n=1)
    module, dot, name = use.removesuffix(".py").rpartition(".")
    if close:
        meant = f"; did you mean {known[close[0]]!r}?"
    elif dot and name.isidentifier():
        meant = f"; did you mean '{module}:{name}', with a colon?"
    else:
        meant = "."
    return StaggerError(
        f"There is no step {use!r}{meant} The built-in steps are {', '.join(BUILTIN)}; write any other step as"
        " module:name."
    )


def install_hint(error: BaseException, named: str = "") -> str:
    """What to type for a package that is not installed; empty for any other error, or if its message says it.

    The module `named` is missing for another reason: it is the user's, or its name has a typing error.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name or "pip install" in str(error):
        return ""
    missing, package = error.name.partition(".")[0], named.partition(".")[0]
    if error.name == "datatrove" or (package == "datatrove" != missing):
        return "; install it with: pip install 'stagger-slurm[datatrove]'"
    return "" if missing == package else f"; install it, for example with: pip install {missing}"


def add_import_path(folders: Iterable[str]) -> None:
    """Make modules in `folders` importable, with lower priority than installed ones."""
    for folder in folders:
        if folder and folder not in sys.path:
            sys.path.append(folder)
