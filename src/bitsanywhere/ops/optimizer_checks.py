"""Checks that the optimizer ops share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.ops import checks
from bitsanywhere.ops.optimizer_rules import RULES, Rule

BLOCKSIZE = 256


def check_rule(op: str, optimizer_name: str, second: bool) -> Rule:
    """The rule of that name; raises if there is none, or if it wants no or another state."""
    rule = RULES.get(optimizer_name)
    if rule is None:
        raise InvalidArgumentError(
            f"{op}: optimizer_name is {optimizer_name!r}",
            f"Allowed are {', '.join(RULES)}.",
            "AdamW is 'adam' with a weight_decay, SGD is 'momentum'.",
        )
    if (rule.states == 2) != second:
        raise InvalidArgumentError(
            f"{op}: {optimizer_name} {'without' if rule.states == 2 else 'with'} a second state",
            f"{optimizer_name} has {rule.states} state tensor{'s'[: rule.states - 1]}.",
            "Pass state2 for adam, lamb and ademamix, and none for the others.",
        )
    return rule


def check_tensors(
    op: str,
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    state_dtype: torch.dtype,
) -> Rule:
    """Raises unless these fit each other as every optimizer op wants them; returns the rule."""
    rule = check_rule(op, optimizer_name, state2 is not None)
    checks.check_float(op, "p", p.dtype)
    if g.layout != torch.strided:
        raise InvalidArgumentError(
            f"{op}: the gradient has layout {g.layout}",
            "Only dense gradients are allowed.",
            "Turn it off where it comes from, such as nn.Embedding(sparse=False).",
        )
    if g.dtype != p.dtype:
        raise DtypeError(
            f"{op}: the gradient is {g.dtype}, the parameter {p.dtype}",
            "Both must have one dtype.",
            "Convert it: p.grad = p.grad.to(p.dtype).",
        )
    if g.shape != p.shape and g.numel() != p.numel():
        raise InvalidArgumentError(
            f"{op}: the gradient has shape {tuple(g.shape)}, the parameter {tuple(p.shape)}",
            "Both must have as many elements.",
            "Pass the gradient of this very parameter.",
        )
    states = {"state1": (state1, rule.rows)}
    if state2 is not None:
        states["state2"] = (state2, 1)
    for name, (state, rows) in states.items():
        if state.dtype != state_dtype:
            raise DtypeError(
                f"{op}: {name} is {state.dtype}",
                f"It must be {state_dtype}.",
                "The 32-bit ops take float32 states, the 8-bit ones uint8.",
            )
        if state.numel() != rows * p.numel():
            raise InvalidArgumentError(
                f"{op}: {name} has {state.numel()} elements",
                f"A parameter of {p.numel()} needs {rows * p.numel()}.",
                "Pass the state that belongs to this parameter.",
            )
    everything = {"g": g, "state1": state1} | ({} if state2 is None else {"state2": state2})
    check_place(op, p, **everything)
    return rule


def check_place(op: str, p: torch.Tensor, **others: torch.Tensor) -> None:
    """Raises unless all are on the device of ``p`` and contiguous."""
    for name, tensor in {"p": p, **others}.items():
        if tensor.device != p.device:
            raise InvalidArgumentError(
                f"{op}: p is on {p.device}, {name} on {tensor.device}",
                "All tensors of an update must be on one device.",
                f"Move it first: {name}.to({str(p.device)!r}).",
            )
        if not tensor.is_contiguous():
            raise InvalidArgumentError(
                f"{op}: {name} of shape {tuple(tensor.shape)} has strides {tensor.stride()}",
                "All tensors must be contiguous; the optimizer classes see to that.",
                f"Pass {name}.contiguous(), and copy the result back.",
            )


def check_8bit(
    op: str,
    rule: Rule,
    p: torch.Tensor,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
) -> None:
    """Raises unless the scales of 8-bit states are one float32 a block of 256."""
    blocks = checks.blocks(p.numel(), BLOCKSIZE)
    checks.check_dtype(op, "absmax1", absmax1, torch.float32)
    checks.check_numel(op, "absmax1", absmax1, rule.rows * blocks, "one a block of 256")
    check_place(op, p, absmax1=absmax1)
    if rule.states == 2:
        if absmax2 is None:
            raise InvalidArgumentError(
                f"{op}: absmax2 is None", "Two 8-bit states need two.", "Pass absmax2."
            )
        checks.check_dtype(op, "absmax2", absmax2, torch.float32)
        checks.check_numel(op, "absmax2", absmax2, blocks, "one a block of 256")
        check_place(op, p, absmax2=absmax2)


def check_maps(
    op: str, rule: Rule, p: torch.Tensor, qmap1: torch.Tensor, qmap2: torch.Tensor | None
) -> None:
    """Raises unless there is a float32 codebook of 256 values for each state."""
    maps = {"qmap1": qmap1} | ({"qmap2": qmap2} if rule.states == 2 else {})
    for name, code in maps.items():
        if code is None:
            raise InvalidArgumentError(
                f"{op}: {name} is None", "Two 8-bit states need two codebooks.", f"Pass {name}."
            )
        checks.check_dtype(op, name, code, torch.float32)
        checks.check_numel(op, name, code, 256, "one a code")
        check_place(op, p, **{name: code})


def check_unorm(op: str, p: torch.Tensor, unorm_vec: torch.Tensor | None) -> None:
    """Raises unless unorm_vec is there to hold a norm."""
    if unorm_vec is None:
        raise InvalidArgumentError(
            f"{op}: max_unorm is above 0 and unorm_vec is None",
            "The norm of the update is gathered in it.",
            "Pass torch.zeros(1, device=p.device).",
        )
    checks.check_dtype(op, "unorm_vec", unorm_vec, torch.float32)
    checks.check_numel(op, "unorm_vec", unorm_vec, 1, "the norm")
    check_place(op, p, unorm_vec=unorm_vec)


def check_lists(op: str, p: Sequence[torch.Tensor], **others: Sequence[torch.Tensor]) -> None:
    """Raises unless the lists are as long as that of the parameters, which share one dtype."""
    if not p:
        raise InvalidArgumentError(
            f"{op}: no parameters", "At least one tensor is needed.", "Leave the call out."
        )
    for name, tensors in others.items():
        if len(tensors) != len(p):
            raise InvalidArgumentError(
                f"{op}: {len(p)} parameters and {len(tensors)} tensors in {name}",
                "There must be one a parameter.",
                "Pass lists in the same order, made from the same parameters.",
            )
    for tensor in p:
        if tensor.dtype != p[0].dtype or tensor.device != p[0].device:
            raise InvalidArgumentError(
                f"{op}: parameters of {p[0].dtype} on {p[0].device} and of {tensor.dtype} on "
                f"{tensor.device} in one call",
                "One call takes one dtype and one device.",
                "Group them, and call once a group.",
            )
