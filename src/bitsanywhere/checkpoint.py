"""state_dict keys <-> the fields of a QuantState; the only place that knows the format.

A 4-bit weight ``weight`` is stored with ``weight.absmax``, ``weight.quant_map``, with nested
statistics also ``weight.nested_absmax`` and ``weight.nested_quant_map``, and the uint8 tensor
``weight.quant_state.bitsandbytes__nf4`` (or ``fp4``): JSON of quant_type, blocksize, dtype, shape,
nested_blocksize, nested_dtype and nested_offset. An int8 weight is stored with ``SCB`` beside it,
the float32 statistics of its rows, and ``weight_format``, which is 0. What is read is untrusted:
sizes are bounded and cross-checked, nothing is unpickled, and every fault is a CheckpointError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitsanywhere.errors import CheckpointError
from bitsanywhere.formats import BLOCKSIZES_4BIT, BLOCKSIZES_8BIT, codebook4

STATE_PREFIX = "quant_state.bitsandbytes__"
TENSOR_KEYS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
INT8_SCALES, INT8_FORMAT, INT8_ROWS = "SCB", "weight_format", 0
MAX_JSON_BYTES = 1 << 16
MAX_ELEMENTS = 1 << 48
FLOAT32_MAX = torch.finfo(torch.float32).max
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class NestedFields:
    """The statistics of quantized statistics."""

    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    dtype: torch.dtype
    offset: float


@dataclass(frozen=True)
class StateFields:
    """The checked content of a stored quant state."""

    absmax: torch.Tensor
    code: torch.Tensor
    blocksize: int
    quant_type: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nested: NestedFields | None


def write_quant_state(state: Any, packed: bool) -> dict[str, Any]:
    """The flat dictionary of a 4-bit QuantState; see QuantState.as_dict."""
    fields: dict[str, Any] = {
        "quant_type": state.quant_type,
        "absmax": state.absmax,
        "blocksize": state.blocksize,
        "quant_map": state.code,
        "dtype": str(state.dtype).removeprefix("torch."),
        "shape": None if state.shape is None else tuple(state.shape),
    }
    if state.nested:
        fields |= {
            "nested_absmax": state.state2.absmax,
            "nested_blocksize": state.state2.blocksize,
            "nested_quant_map": state.state2.code.clone(),
            "nested_dtype": str(state.state2.dtype).removeprefix("torch."),
            "nested_offset": state.offset.item(),
        }
    if not packed:
        return fields
    if state.quant_type is None:
        raise CheckpointError(
            "the state of an 8-bit blockwise quantization has no packed form",
            "Only 4-bit states ('nf4', 'fp4') are stored in checkpoints.",
            "Use as_dict(packed=False).",
        )
    tensors = {key: value for key, value in fields.items() if isinstance(value, torch.Tensor)}
    rest = {key: value for key, value in fields.items() if key not in tensors}
    tensors[STATE_PREFIX + state.quant_type] = pack_dict_to_tensor(rest)
    return tensors


def pack_dict_to_tensor(source_dict: Mapping[str, Any]) -> torch.Tensor:
    """``source_dict`` as JSON in a uint8 tensor of shape (bytes,)."""
    return torch.tensor(list(json.dumps(source_dict).encode()), dtype=torch.uint8, device="cpu")


def unpack_tensor_to_dict(tensor_data: torch.Tensor) -> dict[str, Any]:
    """The inverse of `pack_dict_to_tensor`.

    Raises:
        CheckpointError: if the tensor is not uint8, too long, or not a JSON object.
    """
    if tensor_data.dtype != torch.uint8 or tensor_data.numel() > MAX_JSON_BYTES:
        raise CheckpointError(
            f"quant state JSON is {tensor_data.dtype} of {tensor_data.numel()} elements",
            f"It must be torch.uint8 of at most {MAX_JSON_BYTES}.",
        )
    try:
        content = json.loads(bytes(tensor_data.reshape(-1).tolist()))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"quant state is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"quant state JSON is a {type(content).__name__}, not an object")
    return content


def read_quant_state(source: Mapping[str, Any]) -> StateFields:
    """Checks and decodes a dictionary as `write_quant_state` makes it, keys perhaps prefixed.

    Raises:
        CheckpointError: naming what was given and what is allowed.
    """
    fields = _flatten(source)
    quant_type = _choice(fields, "quant_type", ("nf4", "fp4"))
    blocksize = _choice(fields, "blocksize", BLOCKSIZES_4BIT)
    shape, count = _shape(fields)
    blocks = -(-count // blocksize)
    nested = None
    if "nested_absmax" in fields:
        nested = _nested(fields, blocks)
    absmax = _tensor(fields, "absmax", blocks, torch.float32 if nested is None else torch.uint8)
    given = _tensor(fields, "quant_map", 16, torch.float32)
    code = codebook4(quant_type).tensor(given.device)
    # Some checkpoints hold the map in half precision, so it is recognised, not taken over.
    if not torch.allclose(given, code, rtol=0, atol=0.01):
        raise CheckpointError(f"quant_map is not the codebook of {quant_type}: {given.tolist()}")
    dtype = DTYPES[_choice(fields, "dtype", tuple(DTYPES))]
    return StateFields(absmax, code, blocksize, quant_type, dtype, shape, nested)


def select_state(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of ``state_dict`` that belong to the quant state of the parameter ``prefix``.

    Args:
        prefix: key of the weight with a trailing dot, such as ``"model.fc.weight."``.
    """
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix) and _is_state_key(key.removeprefix(prefix))
    }


def _is_state_key(key: str) -> bool:
    return key in TENSOR_KEYS or key.startswith(STATE_PREFIX)


def _flatten(source: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without prefix, and the packed JSON, if any, opened."""
    fields: dict[str, Any] = {}
    packed: list[str] = []
    for key, value in source.items():
        if not isinstance(key, str):
            raise CheckpointError(f"a key is {key!r}", "Keys must be strings.")
        at = key.find(STATE_PREFIX)
        if at >= 0:
            packed.append(key[at + len(STATE_PREFIX) :])
            fields |= unpack_tensor_to_dict(_require_tensor(key, value))
        else:
            fields[key.rsplit(".", 1)[-1]] = value
    if len(packed) > 1:
        raise CheckpointError(f"{len(packed)} packed quant states: {', '.join(packed)}")
    if packed and fields.get("quant_type") != packed[0]:
        raise CheckpointError(
            f"key says {packed[0]!r}, its JSON says quant_type {fields.get('quant_type')!r}"
        )
    return fields


def _nested(fields: Mapping[str, Any], blocks: int) -> NestedFields:
    blocksize = _choice(fields, "nested_blocksize", BLOCKSIZES_8BIT)
    offset = fields.get("nested_offset")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)):
        raise CheckpointError(f"nested_offset is {offset!r}", "It must be a number.")
    if not abs(offset) <= FLOAT32_MAX:
        raise CheckpointError(f"nested_offset is {str(offset)[:40]}", "It must fit a float32.")
    code = _tensor(fields, "nested_quant_map", 256, torch.float32)
    if not code.isfinite().all():
        raise CheckpointError("nested_quant_map holds NaN or Inf", "All values must be finite.")
    return NestedFields(
        absmax=_tensor(fields, "nested_absmax", -(-blocks // blocksize), torch.float32),
        code=code,
        blocksize=blocksize,
        dtype=DTYPES[_choice(fields, "nested_dtype", tuple(DTYPES))],
        offset=float(offset),
    )


def _choice(fields: Mapping[str, Any], key: str, allowed: tuple[Any, ...]) -> Any:
    value = fields.get(key)
    if isinstance(value, torch.dtype):
        value = str(value).removeprefix("torch.")
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value not in allowed:
        raise CheckpointError(
            f"{key} is {str(value)[:100]!r}" if key in fields else f"{key} is missing",
            f"Allowed are {', '.join(map(str, allowed))}.",
        )
    return value


def _shape(fields: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    shape = fields.get("shape")
    if not isinstance(shape, (list, tuple)) or len(shape) > 8:
        raise CheckpointError(f"shape is {str(shape)[:100]}", "It must list at most 8 sizes.")
    count = 1
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_ELEMENTS:
            raise CheckpointError(f"shape is {str(shape)[:100]}", "Sizes must be integers from 0.")
        count *= size
    if count > MAX_ELEMENTS:
        raise CheckpointError(f"shape is {str(shape)[:100]}", f"At most {MAX_ELEMENTS} elements.")
    return tuple(shape), count


def _require_tensor(key: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{key} is a {type(value).__name__}", "It must be a tensor.")
    if value.layout != torch.strided or value.is_meta:
        where = "on meta" if value.is_meta else str(value.layout)
        raise CheckpointError(f"{key} is {where}", "It must be a dense tensor with data.")
    return value


def _tensor(fields: Mapping[str, Any], key: str, count: int, dtype: torch.dtype) -> torch.Tensor:
    """A field of exactly ``count`` elements; floats may have been cast by model.half()."""
    if key not in fields:
        raise CheckpointError(f"{key} is missing")
    tensor = _require_tensor(key, fields[key])
    if tensor.numel() != count:
        raise CheckpointError(f"{key} has {tensor.numel()} elements", f"It must have {count}.")
    if tensor.dtype != dtype and not (dtype == torch.float32 and tensor.dtype in DTYPES.values()):
        raise CheckpointError(f"{key} is {tensor.dtype}", f"It must be {dtype}.")
    return tensor.to(dtype).reshape(-1)


def write_int8(scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is stored beside a row-wise int8 weight whose row statistics are ``scales``."""
    return {INT8_SCALES: scales, INT8_FORMAT: torch.tensor(INT8_ROWS, dtype=torch.uint8)}


def read_int8(
    state_dict: Mapping[str, Any], prefix: str, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Checks a row-wise int8 weight and returns it with its float32 statistics, shape (rows,).

    Args:
        prefix: the module's, such as ``"model.fc."``; its keys are weight, SCB and weight_format.
        shape: what the weight's shape must be.

    Raises:
        CheckpointError: naming what was given and what is allowed.
    """
    weight = _require_tensor(f"{prefix}weight", state_dict[f"{prefix}weight"])
    if weight.dtype != torch.int8 or tuple(weight.shape) != shape:
        raise CheckpointError(
            f"{prefix}weight is {weight.dtype} {tuple(weight.shape)}",
            f"With {INT8_SCALES} it must be torch.int8 {shape}.",
            "Build the layer with the checkpoint's sizes.",
        )
    check_int8_format(state_dict, prefix)
    return weight, _tensor(state_dict, f"{prefix}{INT8_SCALES}", shape[0], torch.float32)


def check_int8_format(state_dict: Mapping[str, Any], prefix: str) -> None:
    """Raises unless the int8 weight of the module ``prefix`` is stored as rows, or does not say."""
    key = f"{prefix}{INT8_FORMAT}"
    if key not in state_dict:
        return
    layout = _require_tensor(key, state_dict[key])
    if layout.numel() != 1 or layout.is_floating_point() or int(layout) != INT8_ROWS:
        raise CheckpointError(
            f"{key} is {layout.dtype} {layout.reshape(-1)[:4].tolist()}",
            f"Only {INT8_ROWS} is supported: the weight as rows.",
            "Save the model again with a recent bitsandbytes or bitsanywhere.",
        )
