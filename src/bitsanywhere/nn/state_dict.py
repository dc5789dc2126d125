"""Saving and loading of modules that own a Params4bit ``weight``."""

from __future__ import annotations

import copy
from typing import Any

import torch

from bitsanywhere import checkpoint
from bitsanywhere.errors import BitsAnywhereError, CheckpointError
from bitsanywhere.nn.params4bit import Params4bit, expect_products


def save_quant_state(
    weight: Any, destination: dict[str, Any], prefix: str, keep_vars: bool
) -> None:
    """Adds the statistics of a quantized ``weight`` to a state_dict, under ``prefix``weight."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        for key, value in state.as_dict(packed=True).items():
            destination[f"{prefix}weight.{key}"] = value if keep_vars else value.detach()


def load_quantized_weight(module: Any, state_dict: Any, prefix: str, assign: bool) -> Any:
    """Takes a quantized weight out of ``state_dict`` into ``module``; returns what remains.

    Codes and statistics are copied into the parameter that is there, so that ties to it hold;
    with ``assign``, or where it is on "meta", a new parameter takes its place. A float weight is
    left to torch if the layer is not quantized yet.

    Raises:
        CheckpointError: if the statistics are missing, inconsistent, or of another shape.
    """
    key = f"{prefix}weight"
    if key not in state_dict:
        return state_dict
    stats = checkpoint.select_state(state_dict, f"{key}.")
    old = module.weight
    if not stats:
        if getattr(old, "quant_state", None) is not None:
            raise CheckpointError(
                f"{key} comes without its quantization statistics",
                f"This {type(module).__name__} is quantized already.",
                "Load the whole checkpoint, or a float weight into a layer not yet quantized.",
            )
        return state_dict
    try:
        loaded = Params4bit.from_prequantized(
            state_dict[key], stats, device=torch.device("cpu") if old.is_meta else old.device
        )
    except BitsAnywhereError as error:
        raise CheckpointError(f"{key}: {error.what}", error.why, error.mend) from error
    expected = expected_shape(module)
    if tuple(loaded.quant_state.shape) != expected:
        raise CheckpointError(
            f"{key} was quantized from shape {tuple(loaded.quant_state.shape)}",
            f"This {type(module).__name__} needs {expected}.",
            "Build the layer with the checkpoint's sizes.",
        )
    if not assign:
        loaded = copy.deepcopy(loaded)
    if assign or old.is_meta or not isinstance(old, Params4bit):
        module.weight = loaded
    else:
        old.data = loaded.data
        old.__dict__.update({**loaded.__dict__, "module": old.module})
    weight = module.weight
    weight.module = module
    module.quant_state, module.quant_storage = weight.quant_state, weight.quant_storage
    expect_products(weight, weight.device, weight.quant_state.shape, weight.quant_state.dtype)
    taken = {f"{key}.{name}" for name in stats}
    remaining = {name: value for name, value in state_dict.items() if name not in taken}
    remaining[key] = weight
    return remaining


def expected_shape(module: Any) -> tuple[int, int]:
    """Shape of the float weight of a linear or embedding ``module``."""
    if isinstance(module, torch.nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return module.out_features, module.in_features
