"""What can be known of a swarm before anything is queued is refused by a launch, and by --dry-run, in one sentence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stagger.blocks.serving.connections import Timing
from stagger.blocks.serving.keys import VARIABLE, KeyPair, client_keys, key_path
from stagger.blocks.step import clear_registry
from stagger.blocks.swarm_place import END
from stagger.errors import StaggerError
from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes, launch
from stagger.launch.plans import check_key
from stagger.launch.retry import retry
from stagger.plan.registry_requests import LOOK_S
from stagger.rundir.run_folder import RunFolder
from stagger.spec.load import load_file
from stagger.storage.storage import Storage
from tests.conftest import ROOT, Cli
from tests.kit.runs import launches
from tests.kit.slurm_front import front
from tests.models.corpus import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def pipeline(tmp_path: Path, model: str) -> Any:
    """Write the pipeline file of a swarm and of a stage that scores by it; both can be changed."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.jsonl").write_text('{"text": "the cat", "id": "a"}\n')

    def write(
        step: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        more: tuple[dict[str, Any], ...] = (),
        stage: dict[str, Any] | None = None,
        blocks: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Path:
        hosts = {"model": model, "servers": 2, "host": "transformer", "host_options": options or {}, **(blocks or {})}
        steps = [
            {"read_jsonl": {"path": str(tmp_path / "documents")}},
            {"score_blocks": {"engine": "swarm", **(step or {})}},
            {"write_jsonl": {"path": str(tmp_path / "out")}},
        ]
        user = {"name": "score", "uses": ["swarm"], "pipeline": steps, **(stage or {})}
        stages = [{"name": "swarm", "blocks": hosts}, *more, user]
        path = tmp_path / "file.yaml"
        path.write_text(json.dumps({"name": "both", "run_dir": str(tmp_path / "run"), "stages": stages, **changes}))
        return path

    return write


SECOND = ({"name": "second", "blocks": {"total": 6, "servers": 1}},)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"options": {"dtype": "bf16"}}, "host_options.dtype: expected one of auto, bfloat16, float16, float32"),
        ({"options": {"tokens": 0}}, "host_options.tokens: expected a whole number of at least 1, not 0"),
        ({"options": {"tokens": "many"}}, "host_options.tokens: expected a whole number of at least 1, not 'many'"),
        ({"options": {"max_length": True}}, "host_options.max_length: expected a whole number of at least 1, not True"),
        ({"options": {"encrypt": "no"}}, "host_options.encrypt: expected true or false, not 'no'"),
        ({"options": {"keys": 7}}, "host_options.keys: expected a text, not 7"),
        ({"options": {"max_length": 20000}}, "max_length is 20,000, and tokens, .* is 16,384: give tokens"),
        ({"options": {"tokns": 1}}, "blocks: host_options: transformer does not accept them: .*'tokns'"),
        ({"blocks": {"model": None, "total": 6}}, "blocks: model is missing: the host transformer needs the folder"),
        ({"options": {"tokens": 1000}}, "has up to 4,096 tokens, and the servers of swarm take 1,000: lower"),
        (
            {"step": {"tokens": 512}, "options": {"tokens": 1024}},
            "has up to 2,048 tokens, and the servers of swarm take 1,024",
        ),
        (
            {"step": {"tokens": 64, "max_length": 970}, "options": {"tokens": 1000}},
            "has up to 1,024 tokens, and the servers of swarm take 1,000",
        ),
        ({"options": {"max_length": 64}}, r"max_length is 2,048, and that of swarm \(host_options\) is 64: give both"),
        ({"step": {"model": "/elsewhere"}}, "model is /elsewhere, but swarm has .*: leave model out, or give the same"),
        (
            {"step": {"dtype": "float16"}, "options": {"dtype": "bfloat16"}},
            r"dtype is float16, but swarm has bfloat16 \(host_options\): leave it out",
        ),
        ({"blocks": {"num_blocks": 9}}, r"blocks\.model: num_blocks is 9, but the model in .* has 6 blocks"),
        (
            {"blocks": {"model": "/no/model"}},
            r"blocks\.model: /no/model: there is no config\.json\. .* download no/model",
        ),
        (
            {"blocks": {"host": "transfomer"}},
            r"blocks\.host: expected .*, not 'transfomer'; did you mean 'transformer'\?",
        ),
        ({"blocks": {"host": "no:Host"}}, r"file\.yaml:.*: stages\[0\]\.blocks: host: 'no:Host' cannot be imported"),
        ({"stage": {"uses": []}}, "engine: swarm needs servers: give the run a stage with `blocks`"),
        ({"stage": {"uses": ["swam"]}}, "uses: there is no stage 'swam'; did you mean 'swarm'"),
        ({"stage": {"uses": ["swarm", "second"]}, "more": SECOND}, "uses swarm, second: choose one, as in"),
        ({"step": {"swarm": "second"}}, "swarm: 'second' is not in `uses` of the stage, which has swarm"),
        (
            {"step": {"swarm": "second"}, "stage": {"uses": ["second"]}, "more": SECOND},
            "the servers of second serve no hidden states: set blocks.model, and blocks.host: transformer",
        ),
    ],
)
def test_each_mistake_is_told_before_anything_is_written(
    pipeline: Any, tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    for way in (lambda spec: dry_run(spec, Wishes()), launch):
        with pytest.raises(StaggerError, match=sentence) as caught:
            way(load_file(str(pipeline(**given))))
        assert caught.value.exit_status == 2
        assert not (tmp_path / "run").exists()


def test_a_run_in_a_bucket_needs_a_place_for_its_key(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(**options: Any) -> None:
        spec = load_file(str(pipeline(options=options, run_dir="s3://bucket/run")))
        check_key(spec, spec.stage("swarm"))

    for options in ({}, {"keys": "s3://bucket/keys"}):
        with pytest.raises(StaggerError, match=r"swarm: the key .* cannot be kept in s3://bucket/.*host_options"):
            check(**options)
    check(encrypt=False)
    check(keys=str(tmp_path))
    monkeypatch.setenv(VARIABLE, KeyPair.new().secret.decode())
    check()


def test_a_retry_checks_the_place_of_the_key_and_the_model_again(
    pipeline: Any, model: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is launched, and nothing of the earlier launch is undone."""
    front(cli, tmp_path)
    monkeypatch.setenv("PATH", cli.env["PATH"])
    monkeypatch.setenv(VARIABLE, KeyPair.new().secret.decode())
    copy = shutil.copytree(model, tmp_path / "model")
    slurm = {"type": "slurm", "partition": "gpu", "time": 10, "gpus_per_task": 1, "mem_per_cpu_gb": 1}
    file = pipeline(options={"keys": "s3://bucket/keys", "tokens": 4096}, blocks={"model": str(copy)}, executor=slurm)
    launch(load_file(str(file)))
    run, record = RunFolder.open(str(tmp_path / "run"))
    with monkeypatch.context() as without:
        without.delenv(VARIABLE)
        with pytest.raises(StaggerError, match=r"swarm: the key .* cannot be kept in s3://bucket/.*host_options"):
            retry(run, record)
    shutil.rmtree(copy)
    with pytest.raises(StaggerError, match=r"Step 2 \(score_blocks\): .*/model: there is no config.json"):
        retry(run, record)
    assert [len(launches(tmp_path / "run" / name)) for name in ("swarm", "score")] == [1, 1]


def test_the_key_ends_with_its_run_also_in_a_folder_for_several(tmp_path: Path) -> None:
    stage, keys = str(tmp_path / "stage"), str(tmp_path / "keys")
    client_keys(key_path(stage, keys), {})
    assert len(list((tmp_path / "keys").iterdir())) == 1
    clear_registry(Storage(), stage, keys)
    assert list((tmp_path / "keys").iterdir()) == []


def test_the_key_stays_until_the_swarm_has_ended(tmp_path: Path) -> None:
    """All servers may be lost or cancelled while users wait: those that come after must accept the key of these."""
    key = client_keys(path := key_path(str(tmp_path)), {})
    clear_registry(Storage(), str(tmp_path), has_users=True)
    assert client_keys(path, {}) == key
    Storage().write(str(tmp_path / "registry" / END), b"{}")
    clear_registry(Storage(), str(tmp_path), has_users=True)
    assert not Path(path).exists()


@pytest.mark.parametrize("page", ["README.md", "docs/blocks.md"])
def test_examples_of_swarms_are_launched_as_written(page: str, model: str, tmp_path: Path) -> None:
    """All but their paths."""
    (tmp_path / "documents").mkdir()
    lines = [json.dumps({"text": "the cat", "id": str(number)}) for number in range(500)]
    for number, line in enumerate(lines):
        (tmp_path / "documents" / f"{number}.jsonl").write_text(line + "\n")
    shutil.copy(ROOT / "stagger" / "blocks" / "server" / "simulated_host.py", tmp_path / "my_host.py")
    examples = [
        text for text in re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL) if "blocks:" in text
    ]
    assert examples
    for text in examples:
        text = text.replace("/lustre/models/llama-70b", model).replace("/lustre/me", str(tmp_path))
        text = re.sub(r"max_length: \d+", "max_length: 2048", text).replace("my_host:Host", "my_host:SimulatedHost")
        text = text.replace("  host_options: {dtype: bfloat16}\nexecutor", "executor")  # Of a class of the reader's.
        (tmp_path / "file.yaml").write_text(text)
        shown = dry_run(load_file(str(tmp_path / "file.yaml")), Wishes())
        assert [len(stage["arrays"]) for stage in shown["stages"]] == [1] * len(shown["stages"])


def test_launches_count_the_looks_that_users_make() -> None:
    assert Timing().look_s[1] == LOOK_S
