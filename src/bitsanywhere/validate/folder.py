"""The model that was given, as a Hugging Face folder of bf16 weights."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.validate.store import fingerprint


def check_model(path: Path) -> None:
    """Raises InvalidArgumentError unless ``path`` looks like something that can be measured."""
    if path.suffix == ".gguf" and path.is_file():
        return
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise InvalidArgumentError(
            f"{path} is not a model",
            "It must be a folder with config.json and *.safetensors, or a .gguf file.",
            "Give the folder that save_pretrained wrote, or the file itself.",
        )


def model_folder(path: Path, out: Path) -> Path:
    """``path`` itself, or the folder in ``out`` that a GGUF file was converted to.

    The conversion is done once for a file: its weights are dequantized, rounded to bf16 and
    held in memory until they are written. The folder appears only when it is whole.

    Raises:
        MissingPackageError: the package gguf is not installed.
        CheckpointError: the file is not sound, or no Llama.
    """
    if path.is_dir():
        return path
    final = out / f"{path.stem}-{fingerprint(path)[:12]}"
    if final.is_dir():
        return final
    import torch
    from safetensors.torch import save_file

    from bitsanywhere.convert.gguf_model import GgufModel

    source = GgufModel(path)
    with tempfile.TemporaryDirectory(dir=out, prefix=".gguf-") as temporary:
        folder = Path(temporary, "model")
        folder.mkdir()
        weights = {
            name: source.read(name, 0, stored.rows).view(stored.shape).to(torch.bfloat16)
            for name, stored in source.tensors.items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        source.write_companions(folder)
        (folder / "config.json").write_text(json.dumps(source.config(), indent=2), "utf-8")
        os.replace(folder, final)
    return final
