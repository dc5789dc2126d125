"""One step over many parameters: checks first, then one launch for all that share their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.ops.checks import FLOATS
from bitsanywhere.ops.optimizer_rules import Rule
from bitsanywhere.ops.registry import Op, is_watched

PLAIN = (torch.Tensor, torch.nn.Parameter)
# Whose numbers are meant: a parameter, by the number of its group and its own; for those without
# settings of their own, the first one of the group.
Owner = tuple[int, int]


class Numbers(NamedTuple):
    """What the update ops take besides tensors; see `ops.optimizer_rules`."""

    beta1: float
    beta2: float
    beta3: float
    alpha: float
    eps: float
    weight_decay: float
    step: int
    lr: float
    max_unorm: float
    skip_zeros: bool

    def in_order(self) -> tuple[Any, ...]:
        """As all ops take them at the end; the gradient's scale is 1."""
        return (*self[:8], 1.0, self.skip_zeros)


@dataclass
class Batch:
    """Parameters that one launch updates: one device, dtype, kind of state and set of numbers."""

    numbers: Numbers
    owners: dict[Owner, None] = field(default_factory=dict)
    p: list[torch.Tensor] = field(default_factory=list)
    g: list[torch.Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def names(self, rule: Rule) -> tuple[list[str], list[str]]:
        """What a state's tensors are called, and its codebooks, of which float32 ones have none."""
        numbers = range(1, rule.states + 1)
        states = [f"state{i}" for i in numbers]
        if self.states[0]["state1"].dtype != torch.uint8:
            return states, []
        return [*states, *(f"absmax{i}" for i in numbers)], [f"qmap{i}" for i in numbers]

    def run(self, optimizer_name: str, rule: Rule) -> None:
        """Updates the parameters and their states."""
        work = [p if p.is_contiguous() else p.contiguous() for p in self.p]
        grads = [g if g.is_contiguous() else g.contiguous() for g in self.g]
        columns, maps = self._columns(rule)
        if not maps and self.numbers.max_unorm > 0:
            self._run_clipped(optimizer_name, grads, work, *columns)
        else:
            rest = (*columns, *maps, *self.numbers.in_order())
            _launch(self._op(maps), optimizer_name, grads, work, *rest)
        for p, done in zip(self.p, work, strict=True):
            if done is not p:
                p.copy_(done)
        torch.autograd.graph.increment_version(self.p)

    def bound(self, optimizer_name: str, rule: Rule) -> Optional[Callable[..., None]]:
        """The launch as a function of the gradients' addresses, the codebooks and the numbers, if
        the device's backend has one; see `Op.bind`.

        It is for these very tensors, at their addresses, and for contiguous gradients.

        Raises:
            BackendUnavailable: no kernel runs on the device.
        """
        columns, maps = self._columns(rule)
        return self._op(maps).bind(self.p[0].device, optimizer_name, self.p, *columns)

    def _op(self, maps: Sequence[Any]) -> Op:
        if maps:
            return ops.optimizer_update_8bit_blockwise_multi
        return ops.optimizer_update_32bit_multi

    def _columns(self, rule: Rule) -> tuple[list[list[torch.Tensor]], list[Any]]:
        """The states' tensors as the ops take them, and the codebooks."""
        tensors, maps = self.names(rule)
        given = [f"{kind}{i}" for kind in ("state", "absmax")[: 1 + bool(maps)] for i in (1, 2)]
        columns = [[state[key] for state in self.states] if key in tensors else [] for key in given]
        first = self.states[0]
        return columns, [first[key] if key in maps else None for key in ("qmap1", "qmap2") if maps]

    def _run_clipped(
        self,
        name: str,
        grads: list[torch.Tensor],
        work: list[torch.Tensor],
        first: list[torch.Tensor],
        second: list[torch.Tensor],
    ) -> None:
        limit = self.numbers.max_unorm
        norms = torch.stack([torch.linalg.vector_norm(p, dtype=torch.float32) for p in work])
        scratch = torch.zeros_like(norms[:1])
        for i, norm in enumerate(norms.tolist()):
            ops.optimizer_update_32bit(
                name, grads[i], work[i], first[i], second[i] if second else None,
                scratch, limit, norm, *self.numbers.in_order(),
            )  # fmt: skip


def _launch(op: Op, name: str, g: list[torch.Tensor], p: list[torch.Tensor], *rest: Any) -> None:
    """Calls an op, whose arguments need no second check unless they are of a class of their own."""
    if is_watched() or any(type(x) not in PLAIN for x in p):
        op(name, g, p, *rest)
    else:
        op.trusted(name, g, p, *rest)


def check_gradient(p: torch.Tensor, where: str) -> torch.Tensor:
    """The gradient of a parameter.

    Raises:
        InvalidArgumentError, DtypeError: it is sparse, or does not fit the parameter.
    """
    g = p.grad
    assert g is not None
    if g.layout != torch.strided:
        raise InvalidArgumentError(
            f"{where} has a gradient with layout {g.layout}",
            "These optimizers take dense gradients.",
            "Make it dense where it comes from: nn.Embedding(sparse=False).",
        )
    if g.dtype != p.dtype or p.dtype not in FLOATS:
        raise DtypeError(
            f"{where} is {p.dtype}, its gradient {g.dtype}",
            "Both must have one dtype of float32, float16 and bfloat16.",
            "Convert the model before training, or the gradient: p.grad = p.grad.to(p.dtype).",
        )
    if g.device != p.device or g.shape != p.shape:
        raise InvalidArgumentError(
            f"{where} has shape {tuple(p.shape)} on {p.device}, its gradient "
            f"{tuple(g.shape)} on {g.device}",
            "Both must have one shape and be on one device.",
            "Set p.grad to None before moving or replacing the parameter.",
        )
    return g


def check_finite(grads: Sequence[torch.Tensor]) -> None:
    """Raises if a gradient in CPU memory holds an infinity or a NaN.

    Gradients elsewhere are not looked at, as that would wait for the device; there the kernels
    skip the elements whose gradient is not finite. A sum is not finite if a term is not; as it may
    also overflow, the elements are looked at only then.
    """
    for g in grads:
        if g.device.type == "cpu" and not math.isfinite(g.sum().item()):
            wrong = g.numel() - int(torch.isfinite(g).sum())
            if wrong:
                raise InvalidArgumentError(
                    f"{wrong} elements of a gradient of shape {tuple(g.shape)} are not finite",
                    "No parameter was updated.",
                    "Skip the step, or scale the loss (torch.amp.GradScaler does both).",
                )


def check_state(p: torch.Tensor, state: Mapping[str, Any], rows: int, where: str) -> None:
    """Raises if a state no longer fits its parameter, which was moved or replaced."""
    first = state["state1"]
    if first.device != p.device or first.numel() != rows * p.numel():
        raise InvalidArgumentError(
            f"{where} has {p.numel()} elements on {p.device}, its state {first.numel()} on "
            f"{first.device}",
            "The parameter was moved or replaced after the first step.",
            "Move the model before training, or call optimizer.to_gpu() afterwards.",
        )
