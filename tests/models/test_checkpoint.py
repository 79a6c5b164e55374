"""A model's folder is read by ranges, locally and from S3; one that is damaged or of another format is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from stagger.errors import StaggerError
from stagger.models.checkpoint import Checkpoint
from stagger.storage.storage import Storage
from tests.kit.s3_server import S3Server
from tests.s3.conftest import THREE_IN_TEN

FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, by safetensors' own reader."""
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def assert_reads(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    read = checkpoint.read(checkpoint.tensors)
    assert read.keys() == expected.keys()
    for name, tensor in read.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of 10 MB."""
    folder = tmp_path_factory.mktemp("large")
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, vocab_size=512
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="30MB")
    return folder


def uploaded(folder: Path, to: str) -> str:
    storage = Storage()
    for file in folder.iterdir():
        storage.write(f"{to}/{file.name}", file.read_bytes())
    return to


def block(checkpoint: Checkpoint, number: int) -> list[str]:
    return [name for name in checkpoint.tensors if name.startswith(f"model.layers.{number}.")]


def test_all_tensors_are_those_that_safetensors_reads(stored: Path, large: Path) -> None:
    for folder in (stored, large):
        assert_reads(Checkpoint.open(Storage(), str(folder)), tensors_in(folder))


def test_bytes_read_of_10_mb_are_at_most_1_02_times_those_needed(large: Path, s3: S3Server) -> None:
    for folder in (str(large), uploaded(large, "s3://data/large")):
        s3.reset()
        checkpoint = Checkpoint.open(Storage(), folder)
        names = block(checkpoint, 1)
        checkpoint.read(names)
        needed = checkpoint.bytes_of(names)
        assert needed > 8 * 10**6
        assert needed < checkpoint.bytes_read <= 1.02 * needed
    assert s3.stats()["bytes_out"] <= 1.02 * needed
    gets = [entry for entry in s3.log() if entry[0] == "GetObject" and "safetensors" in entry[1]]
    assert len(gets) == 1 + 2 + 2  # The index, headers of two files, and two parts of the range.


def test_neighbours_are_read_together_and_large_gaps_are_left_out(tmp_path: Path) -> None:
    save(tmp_path, {"a": torch.ones(1000), "b": torch.ones(10_000), "c": torch.ones(50_000), "d": torch.ones(1000)})
    checkpoint = Checkpoint.open(Storage(), str(tmp_path))
    opening = checkpoint.bytes_read
    assert sorted(checkpoint.read(["a", "c"])) == ["a", "c"]
    assert checkpoint.bytes_read - opening == 4 * (1000 + 10_000 + 50_000)
    checkpoint.read(["b", "d"])
    assert checkpoint.bytes_read - opening == 4 * (1000 + 10_000 + 50_000) + 4 * (10_000 + 1000)


def test_from_a_faulty_store_comes_the_same(stored: Path, s3: S3Server) -> None:
    folder = uploaded(stored, "s3://data/faulty")
    s3.set_faults(**{**THREE_IN_TEN, "p_503": 0.4}, seed=1)
    storage = Storage()
    assert_reads(Checkpoint.open(storage, folder), tensors_in(stored))
    assert storage.retried()["requests"]


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_replaced_after_the_opening_is_refused(
    stored: Path, tmp_path: Path, s3: S3Server, remote: bool
) -> None:
    shutil.copytree(stored, tmp_path / "model")
    folder = uploaded(stored, "s3://data/replaced") if remote else str(tmp_path / "model")
    checkpoint = Checkpoint.open(Storage(), folder)
    data = bytearray((stored / FIRST).read_bytes())
    data[-1] ^= 1
    Storage().write(f"{folder}/{FIRST}", bytes(data))
    with pytest.raises(StaggerError, match=f"{folder}/{FIRST}: the model has changed while it was read"):
        checkpoint.read(checkpoint.tensors)


def test_a_file_that_is_gone_or_shorter_is_refused(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "model")
    checkpoint = Checkpoint.open(Storage(), str(tmp_path / "model"))
    data = (stored / FIRST).read_bytes()
    (tmp_path / "model" / FIRST).write_bytes(data[:-1])
    with pytest.raises(StaggerError, match=f"{FIRST}: the model has changed while it was read.*the file ends after"):
        checkpoint.read(checkpoint.tensors)
    (tmp_path / "model" / FIRST).unlink()
    with pytest.raises(StaggerError, match=f"{FIRST}: the model has changed while it was read.*it is gone"):
        checkpoint.read(checkpoint.tensors)


def test_tensors_that_begin_at_odd_bytes_and_of_all_dtypes(tmp_path: Path) -> None:
    expected = {
        "flags": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
        "half": torch.randn(5).half(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(1.5),
        "brain": torch.randn(3, 5).bfloat16(),
        "long": torch.arange(3),
    }
    tensors = {
        name: (dtype_name(one), list(one.shape), one.view(-1).view(torch.uint8)) for name, one in expected.items()
    }
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(
        file_of({n: (d, s, bytes(b.tolist())) for n, (d, s, b) in tensors.items()})
    )
    assert_reads(Checkpoint.open(Storage(), str(tmp_path)), expected)


def dtype_name(tensor: torch.Tensor) -> str:
    names = {torch.bool: "BOOL", torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
    return names.get(tensor.dtype, "BF16")


def test_the_fingerprint_is_that_of_the_same_files_alone(stored: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return Checkpoint.open(Storage(), str(folder)).fingerprint

    copy = Path(shutil.copytree(stored, tmp_path / "copy"))  # With times.
    before = fingerprint(copy)
    assert before == fingerprint(stored)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert fingerprint(copy) != before
    (copy / "config.json").write_text(config)
    assert fingerprint(copy) == before
    later = (copy / FIRST).stat().st_mtime + 1
    os.utime(copy / FIRST, (later, later))
    assert fingerprint(copy) != before


def test_on_s3_the_fingerprint_changes_with_any_byte_of_the_weights(stored: Path, s3: S3Server) -> None:
    folder = uploaded(stored, "s3://data/fingerprint")
    before = Checkpoint.open(Storage(), folder).fingerprint
    uploaded(stored, folder)
    assert Checkpoint.open(Storage(), folder).fingerprint == before
    data = (stored / FIRST).read_bytes()
    Storage().write(f"{folder}/{FIRST}", data[:-1] + bytes([data[-1] ^ 1]))
    assert Checkpoint.open(Storage(), folder).fingerprint != before


def test_model_safetensors_goes_before_an_index(stored: Path, tmp_path: Path) -> None:
    """As in transformers."""
    shutil.copytree(stored, tmp_path / "model")
    save(tmp_path / "model", {"a": torch.ones(3)})
    assert [*Checkpoint.open(Storage(), str(tmp_path / "model")).tensors] == ["a"]


def test_files_without_an_index_are_read_together(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "model")
    (tmp_path / "model" / INDEX).unlink()
    assert_reads(Checkpoint.open(Storage(), str(tmp_path / "model")), tensors_in(stored))


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """One file of tensors, with a config.json."""
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors")


def file_of(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A safetensors file with the tensors in this order."""
    entries, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    return with_header(entries, b"".join(data for _, _, data in tensors.values()))


def with_header(entries: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


#: The whole file, and words of the refusal.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "no bytes": (b"", "a safetensors file has at least 8 bytes, and this one 0"),
    "a header of a gigabyte": (struct.pack("<Q", 10**9) + b"{}", "its header claims 1,000,000,000 bytes, and the file"),
    "a header of 2^64 bytes": (struct.pack("<Q", 2**64 - 1) + b"{}", "its header claims 18,446,744,073,709,551,615"),
    "no JSON": (with_header(b"{nothing", b""), "its JSON cannot be read (Expecting property name"),
    "no text": (with_header(b"\xff\xfe{}", b""), "its JSON cannot be read"),
    "no object": (with_header(b"[1]", b""), "its JSON is not an object"),
    "deep JSON": (with_header(b"[" * 100_000, b""), "its JSON cannot be read"),
    "a tensor twice": (with_header(b'{"a": 1, "a": 2}', b""), "it has a twice"),
    "truncated": (with_header({"a": entry(0, 8), "b": entry(8, 16)}, bytes(15)), "it is truncated: it has "),
    "truncated tensor": (with_header({"a": entry(0, 8), "b": entry(8, 16)}, bytes(12)), "the tensor b is cut off"),
    "too long": (with_header({"a": entry(0, 8)}, bytes(9)), "and its tensors end at byte"),
    "overlap": (with_header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "two tensors share bytes: a, b"),
    "hole": (
        with_header({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16)),
        "bytes of no tensor lie between two tensors: a, b",
    ),
    "hole at the start": (with_header({"a": entry(4, 8)}, bytes(8)), "bytes of no tensor lie ahead of the tensor a"),
    "out of range": (with_header({"a": entry(0, 4000)}, bytes(8)), "the tensor a is cut off"),
    "backwards": (
        with_header({"a": entry(8, 0, [2])}, bytes(8)),
        "the tensor a: its shape [2] and data_offsets [8, 0]",
    ),
    "negative": (
        with_header({"a": entry(-4, 4, [2])}, bytes(8)),
        "the tensor a: its shape [2] and data_offsets [-4, 4]",
    ),
    "a fraction": (with_header({"a": entry(0, 8, [2.0])}, bytes(8)), "the tensor a: its shape [2.0]"),
    "wrong shape": (
        with_header({"a": entry(0, 8, [3])}, bytes(8)),
        "the tensor a: F32 [3] takes 12 bytes, and it has 8",
    ),
    "no offsets": (
        with_header({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "the tensor a: it has no dtype, shape",
    ),
    "no entry": (with_header({"a": [1, 2]}, bytes(8)), "the tensor a: it has no dtype, shape and data_offsets"),
    "fp8": (with_header({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)), "the tensor a has the dtype F8_E4M3, which"),
    "no dtype": (with_header({"a": entry(0, 8, [2], ["F32"])}, bytes(8)), "the tensor a has the dtype ['F32'], which"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    content, words = DAMAGED[damage]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(StaggerError) as refused:
        Checkpoint.open(Storage(), str(tmp_path))
    message = str(refused.value)
    assert message.startswith(f"{tmp_path}/model.safetensors: ")
    assert words in message
    assert "\n" not in message


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """A change of a JSON file."""

    def apply(folder: Path) -> None:
        (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))

    return apply


def with_weight(name: str, file: str) -> Callable[[Any], Any]:
    return lambda index: {**index, "weight_map": {**index["weight_map"], name: file}}


def without_weight(name: str) -> Callable[[Any], Any]:
    return lambda index: {"weight_map": {key: file for key, file in index["weight_map"].items() if key != name}}


def without(names: str) -> Callable[[Path], None]:
    """The removal of files."""

    def remove(folder: Path) -> None:
        for file in folder.glob(names):
            file.unlink()

    return remove


def only_pickles(folder: Path) -> None:
    without("*.safetensors*")(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")


def twice(folder: Path) -> None:
    (folder / INDEX).unlink()
    shutil.copy(folder / FIRST, folder / "more.safetensors")


#: What is done to a model's folder, and words of the refusal.
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config.json": (without("config.json"), "there is no config.json"),
    "config.json is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: its JSON cannot"),
    "a key twice": (
        lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'),
        "config.json: it has a twice",
    ),
    "no model_type": (edit("config.json", lambda config: {}), "config.json: there is no model_type"),
    "code of its own": (
        edit("config.json", lambda config: {**config, "auto_map": {"AutoConfig": "configuration_x.X"}}),
        "the key auto_map asks for code of the model's own (trust_remote_code), which stagger does not run. Use a",
    ),
    "quantized": (
        edit("config.json", lambda config: {**config, "quantization_config": {"quant_method": "fp8"}}),
        "the weights are quantized (quantization_config: fp8), which stagger does not read yet. Use the checkpoint in",
    ),
    "pickles": (only_pickles, "the weights are pickles (pytorch_model.bin), which can run any code when they are read"),
    "no weights": (
        without("*.safetensors*"),
        "there are no weights; stagger reads *.safetensors.",
    ),
    "no file": (without(FIRST), f"{FIRST} is missing, in which "),
    "a name of another folder": (
        edit(INDEX, with_weight("a", "../secret.safetensors")),
        f"{INDEX}: the key weight_map",
    ),
    "an empty index": (edit(INDEX, lambda index: {}), f"{INDEX}: the key weight_map must map names of tensors"),
    "a tensor that its file lacks": (edit(INDEX, with_weight("a", FIRST)), f"{FIRST}: the tensor a is missing, which "),
    "a tensor in another file": (
        edit(INDEX, with_weight("model.norm.weight", FIRST)),
        f"{FIRST}: the tensor model.norm.weight is missing, which ",
    ),
    "a tensor that the index lacks": (edit(INDEX, without_weight(EMBEDDING)), f"{INDEX}: the tensor {EMBEDDING} of "),
    "a tensor in two files": (twice, f"is in {FIRST} and in more.safetensors. Remove the file that does not belong"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_no_model_is_refused_with_what_to_do(stored: Path, tmp_path: Path, case: str) -> None:
    change, words = REFUSED[case]
    folder = Path(shutil.copytree(stored, tmp_path / "model"))
    change(folder)
    with pytest.raises(StaggerError) as refused:
        Checkpoint.open(Storage(), str(folder))
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(folder))
    assert refused.value.exit_status == 2


def test_a_folder_that_does_not_exist_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(StaggerError, match=r"there is no config.json.*The folder is empty, or does not exist"):
        Checkpoint.open(Storage(), str(tmp_path / "nowhere"))


def test_a_pointer_of_git_lfs_is_named(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in (FIRST, INDEX):
        (tmp_path / name).write_bytes(pointer)
        with pytest.raises(StaggerError, match=f"{tmp_path}/{name}: it is not the file, but a pointer of Git LFS"):
            Checkpoint.open(Storage(), str(tmp_path))
