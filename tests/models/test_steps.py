"""score_blocks and embed_blocks as steps of a run: launched from YAML and Python, committed, resumed, looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import pytest
from loguru import logger
from pyarrow import parquet

from stagger import (
    Document,
    EmbedBlocks,
    LocalExecutor,
    ReadJsonl,
    ReadParquet,
    ScoreBlocks,
    StaggerError,
    WriteJsonl,
    WriteParquet,
    stateless,
)
from stagger.cli.head import document_of
from stagger.cli.head import documents as looked_at
from stagger.launch.dry_run import dry_run
from stagger.launch.launch import Wishes
from stagger.models.loaded_model import LoadedModel
from stagger.spec.load import load_file
from stagger.storage.storage import Storage
from tests.conftest import contents, jsonl, read_jsonl
from tests.kit.in_process import in_process
from tests.kit.runs import completions
from tests.models.conftest import Models
from tests.models.corpus import documents


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    with in_process():
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four shards of fifteen documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(4):
        lines = [{"text": one.text, "id": f"{shard}-{one.id}"} for one in documents(15, seed=shard)]
        (folder / f"{shard}.jsonl").write_bytes(jsonl(lines))
    return folder


def launched(folder: Path, name: str, steps: Iterable[Any], **settings: Any) -> Path:
    """The folder of the outputs of a run of these steps, between a reader and its writers."""
    writers = [
        WriteParquet(f"{folder}/{name}/parquet", "{stem}.parquet"),
        WriteJsonl(f"{folder}/{name}/jsonl", "{stem}.jsonl", compression=None),
    ]
    reader = ReadJsonl(f"{folder}/corpus")
    LocalExecutor([reader, *steps, *writers], run_dir=folder / name / "run", tasks=2, workers=1, **settings).run()
    return folder / name


def outputs(folder: Path) -> dict[str, bytes]:
    found = {kind: contents(folder / kind) for kind in ("parquet", "jsonl")}
    return {f"{kind}/{name}": data for kind, files in found.items() for name, data in files.items() if name[0] != "."}


def both(model: str, engine: Any = "auto") -> list[Any]:
    return [
        ScoreBlocks(model, engine=engine, tokens=256, max_length=96, per_token=True),
        EmbedBlocks(model, engine=engine, tokens=256, max_length=96, layer=[2, -1], dtype="bfloat16"),
        EmbedBlocks(model, engine=engine, max_length=96, on_long="truncate", pool="none", layer=1, to="states"),
    ]


def test_both_engines_write_the_same_files(models: Models, corpus: Path, tmp_path: Path) -> None:
    whole = launched(tmp_path, "whole", both(models("llama"), "whole"))
    stream = launched(tmp_path, "stream", both(models("llama"), "stream"))
    assert len(outputs(whole)) == 8
    assert outputs(whole) == outputs(stream)
    for folder in (whole, stream):
        for record in completions(folder / "run"):
            assert {note["engine"] for note in record["notes"]["models"]} == {folder.name}
            assert [note["dtype"] for note in record["notes"]["models"]] == ["float32", "bfloat16"]
            counts = record["counts"]
            assert counts["scored_tokens"] > 0
            assert counts["places"] > counts["tokens"] > counts["scored_tokens"]


def test_columns_are_lists_of_float32_and_lines_have_their_shortest_digits(
    models: Models, corpus: Path, tmp_path: Path
) -> None:
    folder = launched(tmp_path, "run", both(models("llama")))
    table = parquet.read_table(folder / "parquet" / "0.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["logprobs"] == types["embedding_2"] == types["embedding_6"] == "list<element: float>"
    assert types["states"] == "list<element: list<element: float>>"
    assert {types[name] for name in ("logprob_sum", "logprob_mean", "perplexity")} == {"double"}
    assert types["tokens"] == "int64"
    assert len(set(table["scored_by"].to_pylist())) == 1
    lines = read_jsonl(folder / "jsonl" / "0.jsonl")
    again = read(ReadParquet(str(folder / "parquet"), glob="0.parquet"))
    for line, row, document in zip(lines, table.to_pylist(), again, strict=True):
        written = line["metadata"]
        for key in ("logprobs", "embedding_2", "embedding_6", "states"):
            numbers = list(flat(written[key]))
            assert max(len(repr(number)) for number in numbers) < 17
            assert numpy.array(numbers, "float32").tolist() == list(flat(row[key]))
        for key, value in written.items():
            assert document.metadata[key] == row[key]
            assert isinstance(value, list) or row[key] == value
        assert len(written["logprobs"]) == written["tokens"]
        assert len(written["states"]) == min(96, written["tokens"] + 1)


def flat(value: Any) -> Iterator[float]:
    for one in value:
        yield from flat(one) if isinstance(one, list) else (one,)


def read(reader: Any) -> list[Document]:
    from stagger.pipeline.task_context import TaskContext

    reader.bind(TaskContext(Storage(), 0, 1, reader.find_shards(Storage()), "test"))
    return list(reader(None, 0, 1))


@stateless
class Failing:
    """Fails at a document, unless a file is there."""

    def __init__(self, at: str, flag: Path) -> None:
        self.at, self.flag = at, flag

    def __call__(self, data: Iterable[Document], rank: int, world_size: int) -> Iterator[Document]:
        for document in data:
            assert document.id != self.at or self.flag.exists(), "fails here"
            yield document


def test_a_run_that_resumes_after_a_committed_shard_writes_what_an_undisturbed_one_writes(
    models: Models, corpus: Path, tmp_path: Path
) -> None:
    def steps(flag: Path) -> list[Any]:
        return [*both(models("mixtral")), Failing("3-doc-7", flag)]

    (tmp_path / "there").touch()
    undisturbed = launched(tmp_path, "undisturbed", steps(tmp_path / "there"), commit="shard")
    with pytest.raises(StaggerError, match="1 rank of"):
        launched(tmp_path, "resumed", steps(tmp_path / "missing"), commit="shard")
    assert len(outputs(tmp_path / "resumed")) == 6
    committed = (tmp_path / "resumed" / "jsonl" / "1.jsonl").stat()
    (tmp_path / "missing").touch()
    resumed = launched(tmp_path, "resumed", steps(tmp_path / "missing"), commit="shard")
    assert outputs(resumed) == outputs(undisturbed)
    assert (resumed / "jsonl" / "1.jsonl").stat() == committed


def test_a_file_for_each_rank_has_the_numbers_of_a_file_for_each_shard(
    models: Models, corpus: Path, tmp_path: Path
) -> None:
    steps = both(models("llama"))
    by_shard = launched(tmp_path, "shards", steps)
    reader, writer = ReadJsonl(str(corpus)), WriteJsonl(f"{tmp_path}/ranks/jsonl", compression=None)
    LocalExecutor([reader, *steps, writer], run_dir=tmp_path / "ranks" / "run", tasks=2, workers=1).run()
    found, expected = (
        [line for file in sorted((folder / "jsonl").glob("*.jsonl")) for line in file.read_bytes().splitlines()]
        for folder in (tmp_path / "ranks", by_shard)
    )
    assert sorted(found) == sorted(expected)


def test_a_model_is_opened_once_for_all_ranks_of_a_process(models: Models, corpus: Path, tmp_path: Path) -> None:
    opened = mock.patch.object(LoadedModel, "open", wraps=LoadedModel.open)
    with opened as spy:
        launched(tmp_path, "run", both(models("llama"))[:1])
    assert spy.call_count == 1
    assert [record["notes"]["models"] for record in completions(tmp_path / "run" / "run")] == [
        [
            {
                "model": models("llama"),
                "fingerprint": mock.ANY,
                "dtype": "float32",
                "device": mock.ANY,
                "engine": "whole",
            }
        ]
    ] * 2


def pipeline(folder: Path, model: str, step: str = "score_blocks", **parameters: Any) -> Path:
    file = folder / "score.yaml"
    file.write_text(
        json.dumps(
            {
                "name": "score",
                "run_dir": f"{folder}/run",
                "pipeline": [
                    {"read_jsonl": {"path": f"{folder}/corpus"}},
                    {step: {"model": model, **parameters}},
                    {"write_parquet": {"path": f"{folder}/out"}},
                ],
                "executor": {"type": "local", "workers": 1},
            }
        )
    )
    return file


@pytest.mark.parametrize("engine", ["whole", "stream"])
def test_a_look_behind_the_step_runs_the_model_here(models: Models, corpus: Path, tmp_path: Path, engine: str) -> None:
    file = pipeline(tmp_path, models("llama"), "embed_blocks", max_length=96, engine=engine)
    looking: Any = looked_at(str(file), 2, None, None, removed=False, text_key=None)
    with mock.patch("stagger.models.passing.count") as counted:
        found = [next(looking), next(looking)]
    assert [one.id for one in found] == ["0-doc-0", "0-doc-1"]
    assert [call.args[0] for call in counted.call_args_list].count("places") <= 3  # No further than it must.
    assert len(document_of(found[0])["metadata"]["embedding"]) == 64
    looking.close()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "parameters", "sentence"),
    [
        ("score_blocks", {"engine": "hole"}, "engine.*'hole'.*did you mean 'whole'"),
        ("score_blocks", {"dtype": "bf16"}, "dtype.*'bf16'.*bfloat16"),
        ("score_blocks", {"tokens": 0}, r"score_blocks\): tokens is 0; give the places of a microbatch"),
        ("score_blocks", {"max_lenght": 9}, "max_lenght: unknown parameter; did you mean 'max_length'"),
        ("score_blocks", {"max_length": 1}, "max_length is 1; give at least 2 tokens"),
        ("score_blocks", {"max_length": 4096}, "max_length is 4,096, but the model has 2,048 positions"),
        ("score_blocks", {"stride": 0}, "stride is 0; give at least 1 token"),
        ("score_blocks", {"stride": 2048}, "stride is 2,048, and max_length 2,048: .* give a smaller stride"),
        ("score_blocks", {"stride": 5, "on_long": "fail"}, "stride belongs to on_long: window, and on_long is fail"),
        ("score_blocks", {"buffer_tokens": -1}, "buffer_tokens is -1; give a number of tokens"),
        ("score_blocks", {"tokenizer": "/nowhere"}, "/nowhere: there is no tokenizer.json; give tokenizer a folder"),
        ("score_blocks", {"model": "/nowhere/Llama"}, r"/nowhere/Llama: there is no config\.json\. .*hf download nowh"),
        ("score_blocks", {"model": __file__}, r"test_steps\.py: it is a file\. Give the folder that it lies in"),
        ("score_blocks", {"dtype": "fp16"}, "dtype.*'fp16'.*did you mean 'float16'"),
        ("embed_blocks", {"layer": 7}, "layer 7: the model has 6 blocks, so its layers are 0 .the embedding. to 6"),
        ("embed_blocks", {"layer": [6, -1]}, r"layer \[6, -1\] names the layer 6 twice"),
        ("embed_blocks", {"layer": []}, "layer is an empty list"),
        ("embed_blocks", {"pool": "max"}, "pool.*'max'"),
        ("embed_blocks", {"to": ""}, "to is empty; give the key of the metadata"),
    ],
)
def test_a_mistake_is_told_by_a_dry_run_in_one_sentence(
    models: Models, corpus: Path, tmp_path: Path, step: str, parameters: dict[str, Any], sentence: str
) -> None:
    file = pipeline(tmp_path, **{"model": models("llama"), "step": step, **parameters})
    with pytest.raises(StaggerError, match=sentence):
        dry_run(load_file(str(file)), Wishes())
    assert not (tmp_path / "run").exists()


def test_a_model_without_positions_needs_a_length(models: Models, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match="has no number of positions: give max_length"):
        dry_run(load_file(str(pipeline(tmp_path, models("bloom")))), Wishes())


def test_a_damaged_tokenizer_is_told_at_launch(models: Models, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    file = pipeline(tmp_path, models("llama"), tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(StaggerError, match=f"{tmp_path}/tokenizer: transformers .* cannot make the tokenizer"):
        dry_run(load_file(str(file)), Wishes())


def test_without_torch_a_launch_checks_what_it_can(models: Models, corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sink = logger.add(said.append, format="{message}")
    with mock.patch("stagger.models.settings.PACKAGES", ("torch", "no_such_package")):
        dry_run(load_file(str(pipeline(tmp_path, models("llama")))), Wishes())
        logger.remove(sink)
        assert [one.partition(",")[0] for one in said] == ["torch and transformers are not installed here"]
        with pytest.raises(StaggerError, match="max_length is 4,096, but the model has 2,048 positions"):
            dry_run(load_file(str(pipeline(tmp_path, models("llama"), max_length=4096))), Wishes())
        step = ScoreBlocks(models("llama"))
        step.bind(mock.Mock())
        with pytest.raises(StaggerError, match=r"no_such_package is not installed here .*pip install .*\[models\]"):
            list(step([Document("the cat", "a")], 0, 1))
