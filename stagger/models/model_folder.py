"""What a model's folder must hold, and what is refused in it. Imports no torch: a launch need not have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from stagger.errors import StaggerError, counted
from stagger.models.model_json import LENGTH_BYTES, header_end, parsed
from stagger.storage import Entry
from stagger.storage.storage import Storage, join

if TYPE_CHECKING:
    from stagger.models.safetensors_header import TensorPlace

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Bytes of a safetensors file that are read first: most headers fit.
FIRST_BYTES = 16 * 2**10

#: Endings of files that unpickle, which runs any code that they hold.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Index(NamedTuple):
    """Which file each tensor is said to be in."""

    path: str
    file_of: dict[str, str]

    def checked(self, folder: str, found: Mapping[str, TensorPlace]) -> dict[str, TensorPlace]:
        """The tensors of the index. Raises StaggerError for one that its file does not have."""
        for name, file in self.file_of.items():
            if name not in found or found[name].file != file:
                raise StaggerError(
                    f"{join(folder, file)}: the tensor {name} is missing, which {self.path} places there. Copy the"
                    " model again."
                )
        for name in found.keys() - self.file_of.keys():
            raise StaggerError(f"{self.path}: the tensor {name} of {found[name].file} is missing in it.")
        return dict(found)


def check_config(folder: str, config: Mapping[str, Any]) -> None:
    """Raise StaggerError for a model that stagger does not run, by its config.json."""
    path = join(folder, "config.json")
    if config.get("auto_map"):
        raise StaggerError(
            f"{path}: the key auto_map asks for code of the model's own (trust_remote_code), which stagger does not"
            " run. Use a model whose architecture is part of transformers; if this one is, remove auto_map."
        )
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise StaggerError(
            f"{path}: the weights are quantized (quantization_config: {method}), which stagger does not read yet. Use"
            " the checkpoint in bfloat16, float16 or float32."
        )
    if not isinstance(config.get("model_type"), str):
        raise StaggerError(f"{path}: there is no model_type, the name of the model's architecture in transformers.")


def weight_files(
    folder: str, files: Mapping[str, Entry], read: Callable[[str], bytes]
) -> tuple[list[str], Index | None]:
    """The names of the weights files, sorted, and the index if it decides: model.safetensors alone goes before it."""
    if SINGLE in files:
        return [SINGLE], None
    if INDEX in files:
        index = parsed_index(join(folder, INDEX), read(INDEX))
        names = sorted(set(index.file_of.values()))
        for name in names:
            if name not in files:
                tensors = [tensor for tensor, file in index.file_of.items() if file == name]
                more = f" and {counted(len(tensors) - 1, 'more tensor')}" if len(tensors) > 1 else ""
                raise StaggerError(
                    f"{join(folder, name)} is missing, in which {index.path} places {tensors[0]}{more}. Copy the file"
                    " from where the model came from."
                )
        return names, index
    names = sorted(name for name in files if name.endswith(".safetensors"))
    if not names:
        raise no_weights(folder, files)
    return names, None


def parsed_index(path: str, text: bytes) -> Index:
    file_of = parsed(path, text).get("weight_map")
    if not isinstance(file_of, dict) or not file_of or not all(map(is_safetensors_name, file_of.values())):
        raise StaggerError(f"{path}: the key weight_map must map names of tensors to safetensors files of the folder.")
    return Index(path, file_of)


def is_safetensors_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and "/" not in name


def no_weights(folder: str, files: Mapping[str, Entry]) -> StaggerError:
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    if pickles:
        return StaggerError(
            f"{folder}: the weights are pickles ({pickles[0]}), which can run any code when they are read; stagger"
            " reads safetensors only. Convert them once: AutoModelForCausalLM.from_pretrained(FOLDER)"
            ".save_pretrained(NEW_FOLDER)."
        )
    gguf = sorted(name for name in files if name.endswith(".gguf"))
    if gguf:
        return StaggerError(f"{folder}: {gguf[0]} is in the format GGUF; stagger reads safetensors only.")
    return StaggerError(f"{folder}: there are no weights; stagger reads *.safetensors.")


def header(storage: Storage, folder: str, file: Entry) -> tuple[bytes, int, int]:
    """The text of a file's header, where it ends, and the bytes read."""
    path = join(folder, file.name)
    first = storage.read_range(path, 0, min(FIRST_BYTES, file.size)) if file.size else b""
    end = header_end(path, first, file.size)
    if end > len(first):
        first += storage.read_range(path, len(first), end)
    return first[LENGTH_BYTES:end], end, len(first)
