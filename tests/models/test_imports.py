"""Where torch is installed, a launch and a task that use no model import none of it."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.test_imports import OF_MODELS, imported_by
from tests.conftest import PipelineFiles

LAUNCH = """
from stagger.cli.main import main
sys.argv = ["stagger", "launch", *sys.argv[1:], "--limit", "1"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""

TASK = """
from stagger.task.__main__ import main
assert main(sys.argv[1:]) == 0
"""


def test_a_launch_and_a_task_without_a_model_import_no_torch(pipeline_file: PipelineFiles, tmp_path: Path) -> None:
    assert not imported_by(LAUNCH, str(pipeline_file()), folder=tmp_path) & OF_MODELS
    settings = str(tmp_path / "run" / "launches" / "1" / "settings.json")
    assert not imported_by(TASK, settings, "1", folder=tmp_path) & OF_MODELS
    assert (tmp_path / "run" / "completions" / "00001.json").exists()
