"""While the steps of a rank run, datatrove's classes are patched: what blocks do with files is done by `AttemptFiles`.

Every block opens its files through a `DataFolder`, itself or by an `OutputFileManager`. These classes are patched, not
the blocks: a function may make a block in its call, and may import datatrove only then.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from stagger.datatrove.attempt_files import AttemptFiles
    from stagger.pipeline.task_context import TaskContext

#: Module of datatrove -> (class, method, the method of `AttemptFiles` that is called in its place).
METHODS = {
    "datatrove.pipeline.base": (("PipelineStep", "__init__", "made"),),
    "datatrove.io": (
        ("DataFolder", "open", "open"),
        ("DataFolder", "info", "info"),
        ("DataFolder", "exists", "exists"),
        ("DataFolder", "isfile", "exists"),
        ("DataFolder", "size", "size"),
        ("DataFolder", "rm_file", "remove"),
        ("DataFolder", "rm", "remove"),
        ("DataFolder", "find", "find"),
        ("DataFolder", "glob", "glob"),
        ("DataFolder", "resolve_paths", "resolve_paths"),
        ("OutputFileManager", "get_file", "get_file"),
    ),
    "datatrove.pipeline.writers.disk_base": (("DiskWriter", "write", "write"), ("DiskWriter", "run", "run")),
}


class Patches:
    """Patches datatrove's classes for one attempt, as soon as their modules are loaded."""

    def __init__(self, task: TaskContext, steps: Sequence[Any]) -> None:
        self._task = task
        self._steps = steps
        self._files: AttemptFiles | None = None
        self._restore = contextlib.ExitStack()

    def begin(self) -> None:
        for module in METHODS:
            if module in sys.modules:
                self._patch(module)
        sys.meta_path.insert(0, self)
        self._restore.callback(sys.meta_path.remove, self)

    def end(self) -> None:
        """Leave datatrove as it was."""
        self._restore.close()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Called by Python before it loads a module."""
        if name not in METHODS:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def loaded(module: Any) -> None:
                load(module)
                self._patch(name)

            spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec

    def _patch(self, module: str) -> None:
        if self._files is None:
            from stagger.datatrove.attempt_files import AttemptFiles

            self._files = AttemptFiles(self._task, self._steps)
            self._restore.callback(self._files.close)
        for kind, name, instead in METHODS[module]:
            patched = getattr(sys.modules[module], kind)
            own = vars(patched).get(name)
            restore = functools.partial(delattr if own is None else setattr, patched, name)
            self._restore.callback(restore, *(() if own is None else (own,)))
            setattr(patched, name, _patched(getattr(self._files, instead), getattr(patched, name)))


@contextlib.contextmanager
def committed_with(task: TaskContext, steps: Sequence[Any] = ()) -> Iterator[None]:
    """While the context lasts, what datatrove's blocks write are outputs of the task. `steps` are those of the rank."""
    patches = Patches(task, steps)
    patches.begin()
    try:
        yield
    finally:
        patches.end()


def _patched(method: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a class of datatrove that calls `method` with the original one."""

    @functools.wraps(original)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(original, self, *arguments, **named)

    return call
