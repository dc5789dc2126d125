"""4-bit weights that were checked once, as checking them takes longer than launching a kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bitsanywhere import ops
from bitsanywhere.ops.checks import FLOATS
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.quant_state import QuantState

Product = Callable[..., "torch.Tensor | None"]


class CheckedWeight:
    """A weight that an op took once. Its state forgets it when a field of the state is set.

    Args:
        product: of A, B and bias; None if A or bias is wrong or B is not as it was.
        outer: the state's state2.
    """

    __slots__ = ("_mark", "_outer", "_product")

    def __init__(self, product: Product, outer: QuantState | None) -> None:
        self._product, self._outer, self._mark = product, outer, None
        if outer is not None:
            # It forgets this mark when a field of it is set. Several states may share it.
            self._mark = outer.checked = outer.checked or object()

    @classmethod
    def by_gemm(cls, B: torch.Tensor, state: QuantState) -> CheckedWeight | None:
        """For B, which gemm_4bit took; None if there is nothing to gain."""
        if not _is_ordinary(B, state):
            return None
        absmax, *nested = state.gemm_statistics()
        fixed = B, state.shape, absmax, state.blocksize, state.quant_type, *nested
        product = ops.gemm_4bit.bind(B.device, *fixed)
        return cls(product or _trusting(*fixed), state.state2)

    @classmethod
    def by_gemv(cls, B: torch.Tensor, state: QuantState) -> CheckedWeight | None:
        """For B, which gemv_4bit took; None if there is nothing to gain."""
        if not _is_ordinary(B, state):
            return None
        absmax, *nested = state.gemm_statistics()
        fixed = B, state.shape, absmax, state.code, state.blocksize, *nested
        product = ops.gemv_4bit.bind(B.device, *fixed)
        return None if product is None else cls(product, state.state2)

    def multiply(
        self, A: torch.Tensor, B: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The product, or None unless B and the state are surely as they were, A and bias right."""
        outer = self._outer
        if outer is None or outer.checked is self._mark:
            return self._product(A, B, bias)
        return None


def _is_ordinary(B: torch.Tensor, state: QuantState) -> bool:
    outer = state.state2
    if outer is not None and outer.blocksize != NESTED_BLOCKSIZE:
        return False
    tensors = [x for x in (B, state.code, *state.gemm_statistics()) if x is not None]
    return all(x.is_contiguous() and not x.is_meta for x in tensors)


def _trusting(
    B: torch.Tensor,
    shape: torch.Size,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    *nested: torch.Tensor | None,
) -> Product:
    """gemm_4bit without its checks, after those of A and bias, for as long as B is as it was."""
    device, address, numel = B.device, B.data_ptr(), B.numel()

    def product(A, B, bias):
        if A.dtype not in FLOATS or A.device != device or A.shape[-1:] != shape[1:]:
            return None
        if B.data_ptr() != address or B.numel() != numel or not B.is_contiguous():
            return None
        if bias is not None and (
            bias.dtype != A.dtype or bias.numel() != shape[0] or bias.device != device
        ):
            return None
        return ops.gemm_4bit.trusted(A, B, shape, absmax, blocksize, quant_type, bias, *nested)

    return product
