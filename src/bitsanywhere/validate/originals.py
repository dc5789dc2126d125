"""The weights of a model folder, tensor by tensor, without loading the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    import torch


class Originals:
    """Tensors of a Hugging Face folder by name, sharded or not.

    Args:
        folder: where ``*.safetensors`` and ``config.json`` are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor, on the CPU; None if the folder has none of that name."""
        path = self._files.get(name)
        if path is None:
            return None
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    def linear_weights(self) -> list[str]:
        """Names of the weights of linear layers, the output layer apart: what gets quantized."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(
            self._folder, local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        last = model.get_output_embeddings()
        return [
            f"{name}.weight"
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not last
        ]
