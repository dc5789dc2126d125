"""What the modules with a row-wise int8 ``weight`` share: getting it ready, saving and loading."""

from __future__ import annotations

from typing import Any

import torch

from bitsanywhere.checkpoint import (
    INT8_FORMAT,
    INT8_SCALES,
    check_int8_format,
    read_int8,
    write_int8,
)
from bitsanywhere.errors import CheckpointError, InvalidArgumentError
from bitsanywhere.nn.int8params import Int8Params
from bitsanywhere.nn.state_dict import expected_shape


def ready_weight(module: Any, scales: torch.Tensor | None) -> Any:
    """The weight of ``module`` with its statistics, quantized now if it is still float.

    Args:
        scales: statistics to take where the weight lost its own, as when a framework put a plain
            parameter in its place.

    Raises:
        InvalidArgumentError: if the weight is int8 and no statistics are known.
    """
    weight = module.weight
    if not isinstance(weight, Int8Params):
        weight = Int8Params(weight.data, requires_grad=False, SCB=scales)
        module.weight = weight
    if weight.dtype != torch.int8:
        return weight.quantize(weight.device)
    if weight.SCB is None:
        weight.SCB = scales
    if weight.SCB is None:
        raise InvalidArgumentError(
            f"The weight of {type(module).__name__} is torch.int8 and its statistics are unknown",
            f"They are stored as {INT8_SCALES}, beside the weight.",
            "Load the whole checkpoint, or set layer.weight.SCB.",
        )
    return weight


def keep_with_weight(module: Any) -> None:
    """Moves the statistics of ``module.weight`` to its device, after torch moved the weight."""
    weight = module.weight
    scales = getattr(weight, "SCB", None)
    if scales is not None and scales.device != weight.device:
        weight.SCB = scales.to(weight.device)


def save_int8(weight: Any, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Adds the statistics of a quantized ``weight`` to a state_dict."""
    scales = getattr(weight, "SCB", None)
    if weight.dtype == torch.int8 and scales is not None:
        for key, value in write_int8(scales).items():
            destination[f"{prefix}{key}"] = value if keep_vars else value.detach()


def load_int8(module: Any, state_dict: Any, prefix: str, assign: bool) -> Any:
    """Takes a quantized weight out of ``state_dict`` into ``module``; returns what remains.

    Codes and statistics are copied into the parameter that is there, so that ties to it hold; with
    ``assign``, or where it is on "meta", a new parameter takes its place. A float weight is left
    to torch if the layer is not quantized yet.

    Raises:
        CheckpointError: if the statistics are missing, inconsistent, or of another shape.
    """
    key = f"{prefix}weight"
    beside = (f"{prefix}{INT8_SCALES}", f"{prefix}{INT8_FORMAT}")
    old, name = module.weight, type(module).__name__
    if key not in state_dict:
        return state_dict
    if not any(other in state_dict for other in beside):
        if old.dtype == torch.int8 and getattr(old, "SCB", None) is not None:
            raise CheckpointError(
                f"{key} comes without its statistics, {beside[0]}",
                f"This {name} is quantized already.",
                "Load the whole checkpoint, or a float weight into a layer not yet quantized.",
            )
        return state_dict
    if getattr(old, "has_fp16_weights", False):
        raise CheckpointError(
            f"{key} is quantized",
            f"This {name} has has_fp16_weights=True: its weight stays float.",
            "Build the layer with has_fp16_weights=False.",
        )
    codes, scales = read_int8(state_dict, prefix, expected_shape(module))
    device = codes.device if old.is_meta else old.device
    if not assign:
        codes, scales = codes.clone(), scales.clone()
    new = Int8Params(codes.to(device), requires_grad=False, SCB=scales.to(device))
    if assign or old.is_meta or not isinstance(old, Int8Params):
        module.weight = new
    else:
        old.requires_grad_(False)
        old.data, old.SCB = new.data, new.SCB
    remaining = {name: value for name, value in state_dict.items() if name not in beside}
    remaining[key] = module.weight
    return remaining


def maybe_rearrange_weight(
    state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
):
    """Takes ``weight_format`` out of ``state_dict``, as a pre-hook of load_state_dict.

    The layers here do this themselves; it is for modules of a program's own.

    Raises:
        CheckpointError: if the weight is not stored as rows.
    """
    check_int8_format(state_dict, prefix)
    state_dict.pop(f"{prefix}{INT8_FORMAT}", None)
