"""What the optimizer kernels take by value: the addresses of many tensors, and a step's numbers."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_

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


class Tables:
    """The structures Tensors of optimizer_tensors.cuh, one a launch, without their gradients.

    Args:
        rule: of `NUMBERS`.
        p: parameters.
        states: state1, state2, absmax1, absmax2, each as long as `p` or empty; the last two may be
            left out.

    Attributes:
        blocks: of 256 elements, of each launch.
    """

    def __init__(self, rule: int, p: Tensors, *states: Tensors) -> None:
        columns = [addresses(column) or [0] * len(p) for column in (p, *states)]
        columns += [[0] * len(p)] * (5 - len(columns))
        # AdEMAMix: the second half of state1 must be aligned too.
        odd = 7 if rule == ADEMAMIX else 0
        counts = list(map(torch.Tensor.numel, p))
        self._filled = [i for i, count in enumerate(counts) if count]
        self._all_filled = len(self._filled) == len(p)
        self._tables: list[array[int]] = []
        self.blocks: list[int] = []
        for start in range(0, len(self._filled), MOST_TENSORS):
            rows, blocks = array("q"), 0
            for i in self._filled[start : start + MOST_TENSORS]:
                a, b, c, d, e = (column[i] for column in columns)
                count = counts[i]
                vectors = 0 if (a | b | c) & 15 or count & odd else count // BLOCKSIZE
                rows.extend((0, a, b, c, d, e, count, blocks | vectors << 32))
                blocks += -(-count // BLOCKSIZE)
            rows.extend((0, 0, 0, 0, 0, 0, 0, blocks))
            self._tables.append(rows)
            self.blocks.append(blocks)

    def fill(self, g: Sequence[int]) -> Iterator[bytes]:
        """The structures for gradients at these addresses."""
        if not self._all_filled:
            g = [g[i] for i in self._filled]
        for start, rows in zip(range(0, len(g), MOST_TENSORS), self._tables):
            table, part = rows[:], array("q", g[start : start + MOST_TENSORS])
            table[0:-8:8] = part
            if reduce(or_, part) & 15:
                for i, address in enumerate(part):
                    if address & 15:
                        table[8 * i + 7] &= 0xFFFFFFFF
            yield table.tobytes()


def addresses(tensors: Tensors) -> list[int]:
    """Where the tensors' data are."""
    return list(map(torch.Tensor.data_ptr, tensors))


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
