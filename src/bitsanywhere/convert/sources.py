"""Where weights come from: a Hugging Face folder or a GGUF file, read a few rows at a time.

Everything in a source is untrusted. Nothing is unpickled and no code of it is run; names of files
may not lead out of the folder; sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from bitsanywhere.convert.safetensors_file import DTYPES, Entry, read_header
from bitsanywhere.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
COMPANION_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
COMPANION_FOLDER = "additional_chat_templates"


@dataclass(frozen=True)
class Stored:
    """One tensor of a source: what `Source.read` gives, and the bytes it takes in the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file_bytes: int

    @property
    def columns(self) -> int:
        """Elements of a row; a tensor of one dimension is one row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows of all leading dimensions together; none if there are no elements."""
        count = 1
        for size in self.shape[:-1]:
            count *= size
        return count if self.columns else 0


class Source(Protocol):
    """A model to convert."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Every tensor by name."""
        ...

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        ...

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of a tensor, shape (stop - start, columns), as stored."""
        ...

    def write_companions(self, folder: Path) -> None:
        """Writes tokenizer, chat template and generation settings into ``folder``."""
        ...

    def identity(self) -> list[Any]:
        """JSON that is another one if the source has changed."""
        ...


def open_source(path: Path) -> Source:
    """The source at ``path``: a folder, or a file that ends in .gguf.

    Raises:
        CheckpointError: if it is neither, or cannot be converted.
    """
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.is_file() and path.suffix == ".gguf":
        from bitsanywhere.convert.gguf_model import GgufModel

        return GgufModel(path)
    raise CheckpointError(
        f"{path} is neither a folder nor a .gguf file",
        "A Hugging Face folder with config.json and safetensors, or one GGUF file, is converted.",
        "Download the model first, for example with `hf download NAME --local-dir DIR`.",
    )


class HuggingFaceFolder:
    """A folder with config.json and model.safetensors, or several of them and their index.

    Args:
        folder: the folder, perhaps with links as in the cache of Hugging Face.

    Raises:
        CheckpointError: if it holds no safetensors, or files that are not sound.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [folder / name for name in self._file_names()]
        self._places: dict[str, tuple[Path, int]] = {}
        self.tensors: dict[str, Stored] = {}
        for file in self.files:
            entries, data = read_header(file)
            for entry in entries:
                self._add(file, entry, data)

    def _file_names(self) -> list[str]:
        if (self.folder / INDEX_FILE).is_file():
            return self._indexed_names()
        if (self.folder / SINGLE_FILE).is_file():
            return [SINGLE_FILE]
        pickled = sorted(p.name for p in self.folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise CheckpointError(
                f"{self.folder} holds its weights as {pickled[0]}, not as safetensors",
                "That format is unpickled, which can run code, so it is not read.",
                "Where you trust it: AutoModelForCausalLM.from_pretrained(DIR)"
                ".save_pretrained(NEW_DIR), then quantize NEW_DIR.",
            )
        raise CheckpointError(
            f"{self.folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}",
            mend="Give the folder that holds config.json and the weights.",
        )

    def _indexed_names(self) -> list[str]:
        index = read_json(self.folder / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise CheckpointError(f"{self.folder / INDEX_FILE} has no weight_map")
        names = set()
        for name in index.values():
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise CheckpointError(
                    f"{INDEX_FILE} names the file {str(name)[:100]!r}",
                    "Weights must lie in the folder itself.",
                )
            if not name.endswith(".safetensors") or not (self.folder / name).is_file():
                raise CheckpointError(
                    f"{INDEX_FILE} names {name[:100]!r}, which is no safetensors file here",
                    mend="Download the missing files.",
                )
            names.add(name)
        return sorted(names)

    def _add(self, file: Path, entry: Entry, data: int) -> None:
        if entry.name in self.tensors:
            raise CheckpointError(f"{entry.name[:100]!r} is in two files of {self.folder}")
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{entry.name[:100]!r} is stored as {entry.dtype}",
                "Weights must be F32, F16 or BF16.",
                "Take a checkpoint of the model that is not quantized.",
            )
        self.tensors[entry.name] = Stored(entry.shape, dtype, entry.stop - entry.start)
        self._places[entry.name] = file, data + entry.start

    def config(self) -> dict[str, Any]:
        """See Source."""
        return read_json(self.folder / CONFIG_FILE)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See Source."""
        stored = self.tensors[name]
        file, position = self._places[name]
        row_bytes = stored.columns * stored.dtype.itemsize
        data = read_bytes(file, position + start * row_bytes, (stop - start) * row_bytes)
        return data.view(stored.dtype).view(stop - start, stored.columns)

    def write_companions(self, folder: Path) -> None:
        """Copies what is small, of a known kind and neither weights nor the config."""
        for path in sorted(self.folder.iterdir()):
            known = path.suffix in COMPANION_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE"))
            replaced = path.name == CONFIG_FILE or path.name.endswith(".index.json")
            if known and not replaced and path.is_file():
                shutil.copyfile(path, folder / path.name)
        for path in sorted(self.folder.glob(f"{COMPANION_FOLDER}/*.jinja")):
            (folder / COMPANION_FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / COMPANION_FOLDER / path.name)

    def identity(self) -> list[Any]:
        """See Source."""
        return [identity_of(path) for path in (self.folder / CONFIG_FILE, *self.files)]


def identity_of(path: Path) -> list[Any]:
    """Name, size and time of change of a file."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def read_bytes(path: Path, position: int, count: int) -> torch.Tensor:
    """Bytes of a file, uint8 of shape (count,).

    They are read, not mapped: pages of a mapping would count as this process's memory.
    """
    data = torch.empty(count, dtype=torch.uint8)
    view = data.numpy().data
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        done = 0
        while done < count:
            got = file.readinto(view[done:])
            if not got:
                raise CheckpointError(f"{path} has become shorter while it was read")
            done += got
    return data


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: if the file is missing, longer than 100 MB, or something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is longer than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content
