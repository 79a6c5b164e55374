"""How pydantic builds the models of the spec: late, without plugins, and with descriptions for those who read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stagger.spec.base import without_plugins
from stagger.spec.descriptions import descriptions
from stagger.spec.executors import EndSpec, EnvSpec, SlurmSpec
from stagger.spec.models import PipelineFile, StageSpec

PLUGIN = """
class Plugin:
    def new_schema_validator(self, schema, schema_type, schema_type_path, *more):
        print(schema_type_path.name)
        return None, None, None

plugin = Plugin()
"""

PROGRAM = """
from pydantic import BaseModel
from stagger.spec.models import RunSpec
from stagger.spec.step_checks import check_built_in
from stagger.steps.jsonl import ReadJsonl

step = {"use": "read_jsonl", "params": {"path": "in"}}
RunSpec.model_validate({"name": "a", "run_dir": "/a", "cwd": "/", "stages": [{"name": "a", "pipeline": [step]}]})
check_built_in(ReadJsonl("in"), "")
class OfUser(BaseModel):
    number: int
"""


def test_plugins_of_pydantic_see_the_users_models_and_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "the_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "the_plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: the_plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pydantic]\nthe_plugin = the_plugin:plugin\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OfUser"]


def test_the_variable_that_turns_plugins_off_is_put_back() -> None:
    name = "PYDANTIC_DISABLE_PLUGINS"
    assert name not in os.environ
    with without_plugins():
        assert os.environ[name] == "__all__"
        with without_plugins():
            pass
        assert os.environ[name] == "__all__"
    assert name not in os.environ


def test_a_key_has_the_description_of_its_own_model_before_an_inherited_one() -> None:
    found = descriptions(StageSpec)
    assert found["name"] == "The stage's name."
    assert found["tasks"] == descriptions(PipelineFile)["tasks"]
    assert found["executor"] == "Where the ranks run."
    assert descriptions(EndSpec)["partition"] == "The partition; by default the stage's."


def test_defaults_that_are_models_are_those_of_an_empty_mapping() -> None:
    """They are made on import, without building their models."""
    made = SlurmSpec.model_validate({"type": "slurm"})
    written = SlurmSpec.model_validate({"type": "slurm", "env": {}, "end": {}})
    assert made == written
    assert (made.env, made.end) == (EnvSpec(), EndSpec())
