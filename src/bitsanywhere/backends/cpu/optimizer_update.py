"""The host side that the four optimizer ops share; the device code is in
`optimizer_update_kernel.py`.

A launch gets a table with a row of eight int64 words a tensor: addresses of gradient, parameter,
state1, state2, absmax1, absmax2; the number of elements; the number of the first task that works
on it. A last row holds the number of tasks at that place.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache

import torch

from bitsanywhere.backends.cpu.common import NAMES
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.optimizer_numbers import SAME, numbers
from bitsanywhere.backends.cpu.parallel import launch
from bitsanywhere.formats import create_dynamic_map, grid_codes, zero_code
from bitsanywhere.ops.optimizer_rules import Settings

BLOCK = 256
BLOCKS_A_TASK = 64
ROW = 64
_TASK = BLOCK * BLOCKS_A_TASK


def update(
    name: str,
    g: Sequence[torch.Tensor],
    p: Sequence[torch.Tensor],
    states: Sequence[Sequence[torch.Tensor]],
    h: Settings,
    factor: float = 1.0,
    codes: Sequence[torch.Tensor] = (),
) -> None:
    """Updates tensors of one dtype.

    Args:
        name: key of `ops.optimizer_rules.RULES`.
        g, p: gradients and parameters.
        states: state1, state2, absmax1, absmax2, each a list as long as `p`, or empty.
        h: the numbers of the update.
        factor: what updates are multiplied with to limit their norm.
        codes: the codebooks of 8-bit states; none for float32 states.
    """
    columns = [[tensor.data_ptr() for tensor in column] for column in (g, p, *states)]
    filled = [column or [0] * len(p) for column in (*columns, *[[]] * (6 - len(columns)))]
    table, tasks = array("q"), 0
    for i, tensor in enumerate(p):
        count = tensor.numel()
        table.extend(column[i] for column in filled)
        table.extend((count, tasks))
        tasks += -(-count // _TASK)
    table.extend((0, 0, 0, 0, 0, 0, 0, tasks))
    constants = numbers(name, h, factor)
    maps = [part for code in codes for part in _tables(code.numpy().tobytes())]
    pointers = [tensor.data_ptr() for tensor in maps]
    function = kernel(
        "optimizer_update",
        rule=SAME.get(name, name),
        dtype=NAMES[p[0].dtype],
        bits=8 if codes else 32,
        dynamic=bool(codes) and all(map(torch.equal, codes, _dynamic_maps())),
    )
    launch(
        function, tasks, table.buffer_info()[0], tasks, constants.buffer_info()[0],
        *pointers, *[0] * (4 - len(pointers)),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _dynamic_maps() -> tuple[torch.Tensor, torch.Tensor]:
    return create_dynamic_map(signed=True), create_dynamic_map(signed=False)


@lru_cache(maxsize=32)
def _tables(raw: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """The values of the codebook whose bytes are `raw`, and the codes of all grid points, then
    that of zero."""
    values = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    return values, torch.cat((grid_codes(values), zero_code(values).view(1)))
