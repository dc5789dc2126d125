"""Saving and loading of modules that own a Params4bit ``weight``."""

from __future__ import annotations

from typing import Any

import torch

from bitsanywhere import checkpoint
from bitsanywhere.nn.params4bit import Params4bit


def save_quant_state(
    weight: Any, destination: dict[str, Any], prefix: str, keep_vars: bool
) -> None:
    """Adds the statistics of a quantized ``weight`` to a state_dict, under ``prefix``weight."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        for key, value in state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{key}"] = value if keep_vars else value.detach()


def load_quantized_weight(module: Any, state_dict: Any, prefix: str) -> Any:
    """Takes a quantized weight out of ``state_dict`` into ``module``; returns what remains.

    Nothing changes where the checkpoint has a float weight. The weight lands on the layer's
    device (CPU for a layer on "meta").

    Raises:
        CheckpointError: if the statistics are inconsistent, or of another shape than the layer.
    """
    key = f"{prefix}weight"
    stats = checkpoint.select_state(state_dict, f"{key}.")
    if not stats or key not in state_dict:
        return state_dict
    old = module.weight
    weight = Params4bit.from_prequantized(
        state_dict[key], stats, device=torch.device("cpu") if old.is_meta else old.device
    )
    expected = expected_shape(module)
    if tuple(weight.quant_state.shape) != expected:
        raise checkpoint.CheckpointError(
            f"{key} was quantized from shape {tuple(weight.quant_state.shape)}",
            f"This {type(module).__name__} needs {expected}.",
        )
    module.quant_state, module.weight, weight.module = weight.quant_state, weight, module
    taken = {f"{key}.{name}" for name in stats}
    remaining = {name: value for name, value in state_dict.items() if name not in taken}
    remaining[key] = weight
    return remaining


def expected_shape(module: Any) -> tuple[int, int]:
    """Shape of the float weight of a linear or embedding ``module``."""
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return module.out_features, module.in_features
