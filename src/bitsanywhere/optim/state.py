"""The state of a parameter: its buffers, its codebooks, and its form in a state dict.

A state has "step", "state1" and, for rules with two, "state2"; 8-bit ones have "absmax1" and
"qmap1" (and 2) beside each. In a state dict the tensors stand one level deeper, under
`NESTED_KEY`, as in bitsandbytes: FSDP would otherwise take them for shards of the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import torch

from bitsanywhere.errors import CheckpointError
from bitsanywhere.formats import create_dynamic_map
from bitsanywhere.ops.optimizer_checks import BLOCKSIZE
from bitsanywhere.ops.optimizer_rules import Rule

NESTED_KEY = "__bnb_optimizer_quant_state__"
NESTED = frozenset(
    f"{name}{number}" for name in ("state", "qmap", "absmax", "max", "new_max") for number in (1, 2)
) | {"gnorm_vec", "unorm_vec"}
MEND = "Load a checkpoint of the same optimizer and model, or start with fresh states."


class Kept:
    """A tensor that torch's own load_state_dict must neither cast nor move."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@lru_cache(maxsize=64)
def codebook(signed: bool, device: torch.device) -> torch.Tensor:
    """The dynamic map on ``device``, shared by all states there; never written to."""
    with torch.inference_mode(False):
        return create_dynamic_map(signed).to(device)


def fresh(
    rule: Rule, p: torch.Tensor, bits: int, buffer: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    """The state of a parameter before its first step.

    Args:
        rule: decides how many tensors and of which shape.
        p: the parameter.
        bits: 8 or 32.
        buffer: (shape, dtype, device) -> zeros.
    """
    dtype = torch.uint8 if bits == 8 else torch.float32
    stacked = (rule.rows,) if rule.rows > 1 else ()
    blocks = -(-p.numel() // BLOCKSIZE)
    state: dict[str, Any] = {"step": 0}
    for number in range(1, rule.states + 1):
        lead = stacked if number == 1 else ()
        state[f"state{number}"] = buffer((*lead, *p.shape), dtype, p.device)
        if bits == 8:
            state[f"qmap{number}"] = codebook(number == 1, p.device)
            absmax = torch.zeros((*lead, blocks), dtype=torch.float32, device=p.device)
            state[f"absmax{number}"] = absmax
    return state


def unpaged(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose paged tensors are aliases that do not say so; a copy of them is not paged."""
    return {k: v.detach() if hasattr(v, "is_paged") else v for k, v in state.items()}


def nest(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state as it stands in a state dict."""
    state = unpaged(state)
    inner = {k: v for k, v in state.items() if k in NESTED and isinstance(v, torch.Tensor)}
    outer = {k: v for k, v in state.items() if k not in inner}
    return {**outer, NESTED_KEY: inner} if inner else outer


def unnest(state: Any, name: str) -> dict[str, Any]:
    """The inverse of `nest`; states that were saved flat are taken as they are."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{name} is a {type(state).__name__}", "It must be a dict.", MEND)
    inner = state.get(NESTED_KEY, {})
    if not isinstance(inner, Mapping):
        raise CheckpointError(
            f"{name}[{NESTED_KEY!r}] is a {type(inner).__name__}", "It must be a dict.", MEND
        )
    return {**{k: v for k, v in state.items() if k != NESTED_KEY}, **inner}


def match(groups: Sequence[Mapping[str, Any]], saved: Any) -> dict[Any, torch.Tensor]:
    """The parameter of each id in a state dict's groups.

    Raises:
        CheckpointError: the groups do not match.
    """
    try:
        ids = [list(group["params"]) for group in saved]
    except (TypeError, KeyError) as error:
        raise CheckpointError("param_groups is malformed", f"{error!r}", MEND) from error
    here = [len(group["params"]) for group in groups]
    if [len(part) for part in ids] != here:
        raise CheckpointError(
            f"The state dict has groups of {[len(part) for part in ids]} parameters",
            f"This optimizer has groups of {here}.",
            MEND,
        )
    return {
        key: p
        for part, group in zip(ids, groups, strict=True)
        for key, p in zip(part, group["params"], strict=True)
    }


def check_loaded(name: str, state: Mapping[str, Any], rule: Rule, p: torch.Tensor) -> None:
    """Raises CheckpointError unless a flat state fits the rule and the parameter."""
    step = cast(Any, state.get("step"))
    if isinstance(step, torch.Tensor) and step.numel() == 1:
        step = step.item()
    if not isinstance(step, (int, float)) or step < 0 or step != int(step):
        raise CheckpointError(f"{name}: step is {step!r}", "It counts the steps taken.", MEND)
    wanted = {f"state{i}": rule.rows if i == 1 else 1 for i in range(1, rule.states + 1)}
    if rule.states == 1 and "state2" in state:
        raise CheckpointError(f"{name} has a state2", "This optimizer has one state.", MEND)
    dtypes = set()
    for key, rows in wanted.items():
        tensor = _tensor(name, state, key, (torch.float32, torch.uint8), rows * p.numel())
        dtypes.add(tensor.dtype)
        if tensor.dtype == torch.uint8:
            blocks = rows * -(-p.numel() // BLOCKSIZE)
            _tensor(name, state, f"absmax{key[-1]}", (torch.float32,), blocks)
            _tensor(name, state, f"qmap{key[-1]}", (torch.float32,), 256)
    if len(dtypes) > 1:
        raise CheckpointError(
            f"{name}: one state in 8 bits, one in 32", "Both are stored alike.", MEND
        )


def _tensor(
    name: str, state: Mapping[str, Any], key: str, dtypes: Sequence[torch.dtype], count: int
) -> torch.Tensor:
    tensor = cast(Any, state.get(key))
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{name}: {key} is {type(tensor).__name__}", "A tensor is due.", MEND)
    if tensor.dtype not in dtypes or tensor.numel() != count:
        raise CheckpointError(
            f"{name}: {key} has {tensor.numel()} elements of {tensor.dtype}",
            f"It must have {count} of {' or '.join(map(str, dtypes))}.",
            MEND,
        )
    return tensor


def loaded(
    state: Mapping[str, Any], p: torch.Tensor, move: bool, buffer: Callable[..., torch.Tensor]
) -> dict[str, Any]:
    """Copies of a checked flat state, ready for torch's load_state_dict.

    Args:
        state: as `unnest` gives it.
        p: its parameter.
        move: whether to copy to the parameter's device, else to that of each tensor.
        buffer: (shape, dtype, device) -> zeros, for state1 and state2.
    """
    result: dict[str, Any] = {}
    for key, value in state.items():
        if key == "step":
            result[key] = int(value)
        elif not isinstance(value, torch.Tensor) or key not in NESTED:
            result[key] = value
        else:
            device = p.device if move else value.device
            result[key] = Kept(_copy(key, value.detach(), device, buffer))
    return result


def _copy(
    key: str, value: torch.Tensor, device: torch.device, buffer: Callable[..., torch.Tensor]
) -> torch.Tensor:
    if key in ("qmap1", "qmap2"):
        shared = codebook(key == "qmap1", device)
        moved = value.to(device)
        return shared if torch.equal(shared, moved) else moved.clone()
    if key in ("state1", "state2"):
        return buffer(tuple(value.shape), value.dtype, device).copy_(value)
    return value.to(device, copy=True, memory_format=torch.contiguous_format)
