"""What the optimizer kernels take by value: the addresses of many tensors, and a step's numbers."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from bitsanywhere.ops.optimizer_rules import RULES, Settings

BLOCKSIZE = 256
# With the other parameters they fill the 4 KiB that every driver takes.
MOST_TENSORS = 61
# As optimizer_rules.cuh numbers them.
NUMBERS = {
    "adam": 0,
    "lamb": 0,
    "ademamix": 1,
    "momentum": 2,
    "lars": 2,
    "rmsprop": 3,
    "adagrad": 4,
    "lion": 5,
}
TWO_STATES = (0, 1)
ADEMAMIX = 1
Tensors = Sequence[torch.Tensor]


def tables(
    rule: int,
    g: Tensors,
    p: Tensors,
    state1: Tensors,
    state2: Tensors,
    absmax1: Tensors = (),
    absmax2: Tensors = (),
) -> Iterator[tuple[bytes, int]]:
    """The structure Tensors of optimizer_tensors.cuh and its blocks of 256 elements, one a launch.

    Args:
        rule: of `NUMBERS`.
        state2, absmax1, absmax2: empty if there are none.
    """
    columns = [
        list(map(torch.Tensor.data_ptr, column)) or [0] * len(p)
        for column in (g, p, state1, state2, absmax1, absmax2)
    ]
    # AdEMAMix: the second half of state1 must be aligned too.
    odd = 7 if rule == ADEMAMIX else 0
    rows: list[int] = []
    blocks = 0
    for a, b, c, d, e, f, count in zip(*columns, map(torch.Tensor.numel, p)):
        if not count:
            continue
        vectors = 0 if (a | b | c | d) & 15 or count & odd else count // BLOCKSIZE
        rows += a, b, c, d, e, f, count, blocks | vectors << 32
        blocks += -(-count // BLOCKSIZE)
        if len(rows) == 8 * MOST_TENSORS:
            yield _packed(rows, blocks), blocks
            rows, blocks = [], 0
    if rows:
        yield _packed(rows, blocks), blocks


def _packed(rows: list[int], blocks: int) -> bytes:
    return struct.pack(f"<{len(rows) + 8}q", *rows, 0, 0, 0, 0, 0, 0, 0, blocks)


def packed_settings(optimizer_name: str, h: Settings) -> bytes:
    """The structure Settings of optimizer_rules.cuh."""
    rule = NUMBERS[optimizer_name]
    inverse1 = inverse2 = 1.0
    eps, times = h.eps, h.lr
    if rule == NUMBERS["adam"]:
        times *= h.correction2 / h.correction1
        eps *= h.correction2
    elif rule == ADEMAMIX:
        inverse1, inverse2 = 1 / h.correction1, 1 / h.correction2
    elif rule == NUMBERS["momentum"] and h.step == 1:
        h = replace(h, beta1=0.0)
    decoupled = RULES[optimizer_name].decoupled
    return struct.pack(
        "<15f",
        *(h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2, h.beta3, 1 - h.beta3, h.alpha, eps),
        *(inverse1, inverse2),
        0.0 if decoupled else h.weight_decay,
        1 - h.lr * h.weight_decay if decoupled else 1.0,
        times,
        h.gnorm_scale,
        0.0 if h.skip_zeros else -1.0,
    )
