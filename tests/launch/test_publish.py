"""The outputs of a stage are published in one commit, once its ranks are done; twice is the same as once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagger import RunFailed, StaggerError
from stagger.launch.launch import launch
from stagger.launch.launched import Launched
from stagger.launch.publish import NotPublished, check_publishing, names_in_repo, publish
from stagger.launch.rehearsal import prepared
from stagger.rundir.published import read_published
from stagger.rundir.run_folder import RunFolder, RunRecord
from stagger.spec.load import load_file
from stagger.status.look import glance_at_run
from stagger.status.stage_status import stage_status
from tests.conftest import Cli
from tests.kit.hub import TOKEN, Hub, hub

pytest.importorskip("huggingface_hub")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, for this process and for those that it starts."""
    from huggingface_hub import constants

    with hub() as state:
        for name, value in (
            ("HF_ENDPOINT", state.endpoint),
            ("HF_TOKEN", TOKEN),
            ("HF_HUB_DISABLE_XET", "1"),
            ("HF_HOME", str(tmp_path / "hf")),
        ):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", state.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("stagger.launch.publish.full_jitter", lambda failures, draw: 0.0)
        yield state


def pipeline(folder: Path, **publish: Any) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    for number in range(3):
        record = {"text": "x", "id": f"{number}", "language": f"l{number % 2}"}
        (folder / "in" / f"{number}.jsonl").write_text(json.dumps(record))
    content = {
        "name": "pub",
        "run_dir": str(folder / "run"),
        "tasks": 3,
        "publish": {"repo": "team/data", **publish},
        "pipeline": [
            {"read_jsonl": {"path": str(folder / "in")}},
            {"write_jsonl": {"path": str(folder / "out"), "filename": "{language}/{rank}.jsonl"}},
            {"write_jsonl": {"path": str(folder / "plain"), "compression": None}},
        ],
    }
    (folder / "p.yaml").write_text(json.dumps(content))
    return folder / "p.yaml"


def test_a_run_publishes_its_outputs_once(cli: Cli, remote: Hub, tmp_path: Path) -> None:
    file = pipeline(tmp_path, path="v1")
    cli.env |= {name: value for name, value in os.environ.items() if name.startswith("HF_")}
    remote.failures = 1
    cli("launch", file, check=0)
    assert sorted(remote.files) == [
        *(f"v1/out/l{n % 2}/0000{n}.jsonl.zst" for n in (0, 2, 1)),
        *(f"v1/plain/0000{n}.jsonl" for n in range(3)),
    ]
    assert remote.files["v1/plain/00001.jsonl"] == (tmp_path / "plain" / "00001.jsonl").read_bytes()
    assert (len(remote.commits), remote.private) == (1, True)
    said = cli("status", tmp_path / "run", check=0).out
    assert f"published 6 files in {remote.endpoint}/datasets/team/data, commit {remote.commits[0][:7]}" in said
    cli("launch", file, check=0)
    assert len(remote.commits) == 1
    everything = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert TOKEN.encode() not in everything


def look_of(file: Path) -> Any:
    spec = load_file(str(file))
    run = RunFolder.open(spec.run_dir, {})[0]
    record = run.load() or RunRecord(spec)
    return glance_at_run(run, record)["pub"]


def test_a_failure_is_recorded_and_made_up_for_and_files_that_are_gone_are_removed(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pipeline(tmp_path)
    monkeypatch.setattr("stagger.launch.publish.TRIES", 2)
    remote.failures = 100
    with pytest.raises(NotPublished, match="its ranks are done, but the outputs are not published to team/data"):
        launch(load_file(str(file)))
    look = look_of(file)
    assert "503" in (read_published(look.stage.folder) or pytest.fail("no record")).error
    with pytest.raises(NotPublished):
        publish(look)
    with pytest.raises(RunFailed, match=r"All ranks are done, but outputs are not published to team/data: .*503"):
        Launched("run", [stage_status(look)]).raise_if_failed()
    remote.failures = 0
    assert publish(look)[0].startswith("published 6 files")
    assert publish(look) == []
    (tmp_path / "plain" / "00002.jsonl").unlink()
    look.completions[2]["outputs"] = look.completions[2]["outputs"][:1]
    assert publish(look)[0].startswith("published 5 files")
    assert "plain/00002.jsonl" not in remote.files
    look.completions[0]["outputs"][0]["bytes"] += 1
    with pytest.raises(NotPublished, match="has changed since its rank was done"):
        publish(look)


@pytest.mark.parametrize(
    ("repo", "token", "role", "said"),
    [
        ("team/data", None, "write", "there is no token for the Hub; export HF_TOKEN"),
        ("team/data", "hf_wrong", "write", "the Hub does not accept this token"),
        ("others/data", TOKEN, "write", "the token belongs to me, who is not a member of others"),
        ("team/data", TOKEN, "read", "the token may only read"),
    ],
)
def test_a_launch_checks_the_token(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str, token: str | None, role: str, said: str
) -> None:
    remote.role = role
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    else:
        monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    spec = load_file(str(pipeline(tmp_path, repo=repo)))
    with pytest.raises(StaggerError, match=said):
        check_publishing(spec, {"pub": ["out"]})


def test_what_cannot_be_published_is_refused(remote: Hub, tmp_path: Path) -> None:
    for wrong, said in (
        ({"repo": "data"}, "user/name"),
        ({"path": "../x"}, "give a folder below the top of the data set"),
        ({"token": "x"}, "token"),
    ):
        with pytest.raises(StaggerError, match=said):
            load_file(str(pipeline(tmp_path, **wrong)))
    spec = load_file(str(pipeline(tmp_path)))
    with pytest.raises(StaggerError, match="no step of the stage writes files"):
        check_publishing(spec, {"pub": []})
    content = json.loads((tmp_path / "p.yaml").read_text())
    steps = content.pop("pipeline")
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "stages": [{"name": "a", "pipeline": steps}]}))
    with pytest.raises(StaggerError, match="write publish in the stage whose outputs are to be published"):
        load_file(str(tmp_path / "p.yaml"))


def test_a_rehearsal_publishes_nothing(remote: Hub, tmp_path: Path) -> None:
    rehearsed = prepared(load_file(str(pipeline(tmp_path))), 1, {}, str(tmp_path / "rehearsal"))
    assert [stage.publish for stage in rehearsed.spec.stages] == [None]


def test_a_hub_that_does_not_answer_is_no_reason_to_refuse(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    check_publishing(load_file(str(pipeline(tmp_path))), {"pub": ["out"]})


def test_names_in_the_repository() -> None:
    outputs: Any = {"/a/out/en/0.jsonl": {}, "/a/out/fr/0.jsonl": {}}
    assert list(names_in_repo(outputs, ["/a/out"], "").values()) == ["en/0.jsonl", "fr/0.jsonl"]
    assert list(names_in_repo(outputs, ["/a/out", "/b"], "v1/").values()) == ["v1/out/en/0.jsonl", "v1/out/fr/0.jsonl"]
    with pytest.raises(StaggerError, match="two outputs have the same path"):
        names_in_repo({"/a/out/0": {}, "/b/out/0": {}}, ["/a/out", "/b/out"], "")  # type: ignore[typeddict-item]
