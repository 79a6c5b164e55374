"""Runs one description of a pipeline by datatrove's own executor and by stagger, from YAML and from Python."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor

from stagger import LocalExecutor, ReadJsonl, WriteJsonl
from stagger.launch.launch import Wishes, launch
from stagger.spec.load import load_file


@dataclass(frozen=True)
class Function:
    """A parameter that is a function: `module:name`."""

    name: str


@dataclass(frozen=True)
class Object:
    """A parameter that is an object: `module:Class`, and the parameters of its constructor."""

    name: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One stage: the number of ranks, and the steps as `module:Class` and parameters.

    The step `read` reads JSON Lines, and `write` writes them: each tool uses its own. In parameters, a text that begins
    with `@out/` is a path below the folder of the tool's outputs, and one with `@in/` below the materials.
    """

    tasks: int
    steps: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Places:
    """The folders of a test."""

    folder: Path
    materials: Path

    def out(self, tool: str) -> Path:
        return self.folder / tool

    def filled_in(self, value: Any, tool: str) -> Any:
        """`value` with the folders of `tool` for the marks `@out` and `@in`."""
        if isinstance(value, str):
            for mark, folder in (("@out", self.out(tool)), ("@in", self.materials)):
                if value == mark or value.startswith(f"{mark}/"):
                    return str(folder) + value.removeprefix(mark)
        if isinstance(value, Object):
            return Object(value.name, self.filled_in(value.params, tool))
        if isinstance(value, dict):
            return {key: self.filled_in(one, tool) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.filled_in(one, tool) for one in value)
        return value

    # datatrove

    def run_datatrove(self, stages: tuple[Stage, ...]) -> dict[str, Any]:
        """Run the stages by datatrove's own executor. Returns its outputs, as `contents` gives them."""
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.writers import JsonlWriter

        for number, stage in enumerate(stages):
            steps: list[Any] = []
            for use, params in stage.steps:
                given = self.filled_in(params, "datatrove")
                if use == "read":
                    steps.append(JsonlReader(given["path"], add_file_path=False))
                elif use == "write":
                    steps.append(JsonlWriter(given["path"], "${rank}.jsonl", compression=None))
                else:
                    steps.append(made(Object(use, given)))
            logs = str(self.folder / f"datatrove-logs-{number}")
            LocalPipelineExecutor(steps, tasks=stage.tasks, workers=1, logging_dir=logs).run()
        return contents(self.out("datatrove"))

    def expected(self, name: str, stages: tuple[Stage, ...], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """What datatrove's executor writes for the stages called `name`, which it runs once for all tests."""
        if name not in known:
            known[name] = self.run_datatrove(stages)
        return known[name]

    # stagger

    def pipeline_file(
        self, stages: tuple[Stage, ...], tool: str = "yaml", *, chained: bool = True, **more: Any
    ) -> Path:
        """Write the pipeline file of the stages, each of which depends on the one before if they are `chained`.

        `more` are keys of the file.
        """
        content = {
            "name": tool,
            "run_dir": str(self.folder / f"{tool}-run"),
            "executor": {"type": "local", "workers": 1},
            "stages": [
                {
                    "name": f"stage-{number}",
                    "tasks": stage.tasks,
                    "pipeline": [self.in_yaml(step, tool) for step in stage.steps],
                    **({"depends": [f"stage-{number - 1}"]} if number and chained else {}),
                }
                for number, stage in enumerate(stages)
            ],
            **more,
        }
        path = self.folder / f"{tool}.yaml"
        path.write_text(json.dumps(content))
        return path

    def in_yaml(self, step: tuple[str, dict[str, Any]], tool: str) -> dict[str, Any]:
        use, params = step[0], self.filled_in(step[1], tool)
        if use == "read":
            return {"read_jsonl": params}
        if use == "write":
            return {"write_jsonl": {"compression": None, **params}}
        return {use: notation(params)}

    def run_yaml(self, stages: tuple[Stage, ...], tool: str = "yaml", **more: Any) -> dict[str, Any]:
        """Run the stages from a pipeline file."""
        launch(load_file(str(self.pipeline_file(stages, tool, **more))), Wishes()).raise_if_failed()
        return contents(self.out(tool))

    def run_python(self, stages: tuple[Stage, ...], **more: Any) -> dict[str, Any]:
        """Run the stages from Python, with the same objects that datatrove gets."""
        before: LocalExecutor | None = None
        for number, stage in enumerate(stages):
            before = LocalExecutor(
                [self.in_python(step) for step in stage.steps],
                name=f"stage-{number}",
                run_dir=self.folder / "python-run",
                tasks=stage.tasks,
                workers=1,
                depends=() if before is None else before,
                **more,
            )
        assert before is not None
        before.run()
        return contents(self.out("python"))

    def in_python(self, step: tuple[str, dict[str, Any]]) -> Any:
        use, params = step[0], self.filled_in(step[1], "python")
        if use == "read":
            return ReadJsonl(**params)
        if use == "write":
            return WriteJsonl(**{"compression": None, **params})
        return made(Object(use, params))


def target(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def made(value: Any) -> Any:
    """A description as the object itself."""
    if isinstance(value, Object):
        return target(value.name)(**made(value.params))
    if isinstance(value, Function):
        return target(value.name)
    if isinstance(value, dict):
        return {key: made(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(made(one) for one in value)
    return value


def notation(value: Any) -> Any:
    """A description as a pipeline file has it."""
    if isinstance(value, Object):
        return {value.name: notation(value.params)}
    if isinstance(value, Function):
        return {value.name: None}
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: notation(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [notation(one) for one in value]
    return value


def contents(folder: Path) -> dict[str, Any]:
    """What a tool wrote: the path of each file -> its documents, or its bytes if it holds none."""
    return {str(path.relative_to(folder)): content(path) for path in files(folder)}


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def content(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".gz":  # Its header holds the time.
        data = gzip.decompress(data)
    if ".jsonl" in path.name:
        return [json.loads(line) for line in data.splitlines()]
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path).to_pylist()
    return data
