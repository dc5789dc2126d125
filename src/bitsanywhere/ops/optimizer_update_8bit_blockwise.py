"""optimizer_update_8bit_blockwise: one optimizer step of one tensor with 8-bit states, in place
(Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", section 2).

For a block of 256 elements of the flattened tensor: the states are dequantized
(``qmap[state] * absmax``), moved as `optimizer_rules` says, and quantized again exactly as
`quantize_blockwise` does it; the parameter moves by the states before they are quantized. AdEMAMix
keeps its two averages one after the other in state1, each with its own blocks.
"""

from __future__ import annotations

import torch

from bitsanywhere.ops import optimizer_checks as checks
from bitsanywhere.ops import registry
from bitsanywhere.ops.dequantize_blockwise import dequantize_blockwise_torch
from bitsanywhere.ops.optimizer_checks import BLOCKSIZE
from bitsanywhere.ops.optimizer_rules import RULES, Settings, apply
from bitsanywhere.ops.quantize_blockwise import quantize_blockwise_torch

SCHEMA = (
    "(str optimizer_name, Tensor(a0!) g, Tensor(a1!) p, Tensor(a2!) state1, Tensor(a3!)? state2, "
    "float beta1, float beta2, float beta3, float alpha, float eps, int step, float lr, "
    "Tensor(a4!) qmap1, Tensor(a5!)? qmap2, Tensor(a6!) absmax1, Tensor(a7!)? absmax2, "
    "float weight_decay, float gnorm_scale, bool skip_zeros=False) -> ()"
)
_CHUNK = 1 << 18


def check(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
    *numbers: float,
) -> None:
    """Allowed: contiguous g and p of one float dtype, contiguous uint8 states of p's size
    (AdEMAMix: state1 of twice that), float32 absmax of one element a block, float32 codebooks.
    """
    name = "optimizer_update_8bit_blockwise"
    rule = checks.check_tensors(name, optimizer_name, g, p, state1, state2, torch.uint8)
    checks.check_maps(name, rule, p, qmap1, qmap2)
    checks.check_8bit(name, rule, p, absmax1, absmax2)


def fake(*args: object) -> None:
    """Nothing is returned."""


def optimizer_update_8bit_blockwise_torch(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: torch.Tensor | None,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: torch.Tensor | None,
    absmax1: torch.Tensor,
    absmax2: torch.Tensor | None,
    weight_decay: float,
    gnorm_scale: float,
    skip_zeros: bool = False,
) -> None:
    """The op in plain torch, in chunks of whole blocks."""
    h = Settings(beta1, beta2, beta3, alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros)
    rows = RULES[optimizer_name].rows
    gradient, flat = g.view(-1), p.view(-1)
    averages = [
        _Stored(codes, scales, qmap1)
        for codes, scales in zip(state1.view(-1).chunk(rows), absmax1.view(-1).chunk(rows))
    ]
    second = None
    if state2 is not None and absmax2 is not None and qmap2 is not None:
        second = _Stored(state2.view(-1), absmax2.view(-1), qmap2)
    for start in range(0, p.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        loaded = [average.load(start) for average in averages]
        new_p, new1, _, new2 = apply(
            optimizer_name,
            gradient[part],
            flat[part],
            torch.stack(loaded) if rows == 2 else loaded[0],
            None if second is None else second.load(start),
            h,
        )
        flat[part] = new_p.to(p.dtype)
        for average, new in zip(averages, new1.view(rows, -1)):
            average.store(start, new)
        if second is not None and new2 is not None:
            second.store(start, new2)


class _Stored:
    """A flat state in 8 bits, read and written in chunks."""

    def __init__(self, codes: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor) -> None:
        self.codes, self.absmax, self.code = codes, absmax, code

    def _parts(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.codes[start : start + _CHUNK]
        first = start // BLOCKSIZE
        return codes, self.absmax[first : first - (-codes.numel() // BLOCKSIZE)]

    def load(self, start: int) -> torch.Tensor:
        codes, absmax = self._parts(start)
        return dequantize_blockwise_torch(codes, absmax, self.code, BLOCKSIZE, torch.float32)

    def store(self, start: int, values: torch.Tensor) -> None:
        codes, absmax = self._parts(start)
        new_codes, new_absmax = quantize_blockwise_torch(values, self.code, BLOCKSIZE)
        codes.copy_(new_codes)
        absmax.copy_(new_absmax)


OP = registry.register(
    "optimizer_update_8bit_blockwise",
    SCHEMA,
    check=check,
    fake=fake,
    reference=optimizer_update_8bit_blockwise_torch,
    place=1,
)
