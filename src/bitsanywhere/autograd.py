"""Differentiable products with quantized weights."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import is_grad_enabled
from torch._C import DisableTorchFunctionSubclass, _is_any_autocast_enabled

from bitsanywhere import ops
from bitsanywhere.autograd_int8 import (
    GlobalOutlierPooler,
    MatMul8bitFp,
    MatMul8bitLt,
    MatmulLtState,
    autocast,
    matmul,
)
from bitsanywhere.checked_weight import CheckedWeight
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops.registry import is_transformed, is_watched
from bitsanywhere.quant_state import QuantState

__all__ = [
    "GlobalOutlierPooler",
    "MatMul4Bit",
    "MatMul8bitFp",
    "MatMul8bitLt",
    "MatmulLtState",
    "input_gradient",
    "matmul",
    "matmul_4bit",
]


class MatMul4Bit(torch.autograd.Function):
    """A @ dequantize(B).T + bias; gradients flow to A and bias, the weight is frozen."""

    @staticmethod
    def forward(ctx, A, B, out=None, bias=None, quant_state: Any = None):
        result = _forward(A, B, quant_state, bias, is_watched())
        # Not save_for_backward: the frozen codes are nothing for hooks on saved tensors, and
        # may have been made in inference mode.
        ctx.B, ctx.quant_state = B, quant_state
        return result if out is None else out.copy_(result)

    @staticmethod
    def backward(ctx, grad_output):
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = input_gradient(grad_output, ctx.B, ctx.quant_state)
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.reshape(-1, grad_output.shape[-1]).sum(0)
        return grad_A, None, None, grad_bias, None


def matmul_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    quant_state: QuantState,
    out: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
):
    """A @ dequantize(B).T + bias (QLoRA, Dettmers et al. 2023, equation 5).

    Args:
        A: float32, float16, bfloat16 or float64 of shape (..., K); under autocast it is cast.
        B: codes of the frozen weight of shape (N, K), as stored or as a transposed view.
        quant_state: state of B.
        out: receives the result.
        bias: shape (N,), A's dtype.

    Returns:
        A tensor of A's dtype and shape (..., N).
    """
    if quant_state is None:
        raise InvalidArgumentError(
            "matmul_4bit: quant_state is None",
            "It says how B is to be read.",
            "Give the state that quantize_4bit returned with B.",
        )
    if _is_any_autocast_enabled() and not A.is_meta:
        A, bias = autocast(A, bias)
    watched = is_watched()
    if watched and is_transformed():
        quant_state.require_4bit("matmul_4bit")
        result = torch.nn.functional.linear(A, _weight(B, quant_state, A.dtype), bias)
    elif is_grad_enabled() and (A.requires_grad or (bias is not None and bias.requires_grad)):
        return MatMul4Bit.apply(A, B, out, bias, quant_state)
    else:
        result = _forward(A, B, quant_state, bias, watched)
    return result if out is None else out.copy_(result)


def _forward(
    A: torch.Tensor,
    B: torch.Tensor,
    quant_state: QuantState,
    bias: torch.Tensor | None,
    watched: bool,
) -> torch.Tensor:
    """The product without autograd, by the shortest way that is open."""
    if watched or type(A) is not torch.Tensor:
        return _product(A, B, quant_state, bias)
    # Without this every attribute of a Params4bit takes a detour through Python.
    with DisableTorchFunctionSubclass():
        known = quant_state.checked
        if known is not None:
            result = known.multiply(A, B, bias)
            if result is not None:
                return result
        result = _product(A, B, quant_state, bias)
        if A.dtype != torch.float64:
            quant_state.checked = CheckedWeight.by_gemm(B, quant_state)
        return result


def _product(
    A: torch.Tensor, B: torch.Tensor, quant_state: QuantState, bias: torch.Tensor | None
) -> torch.Tensor:
    """`_forward` with every check."""
    quant_state.require_4bit("matmul_4bit")
    if A.dtype == torch.float64:
        return torch.nn.functional.linear(A, _weight(B, quant_state, A.dtype), bias)
    absmax, *nested = quant_state.gemm_statistics()
    fixed = (quant_state.blocksize, quant_state.quant_type)
    return ops.gemm_4bit(A, B, quant_state.shape, absmax, *fixed, bias, *nested)


def input_gradient(
    grad_output: torch.Tensor, B: torch.Tensor, quant_state: QuantState
) -> torch.Tensor:
    """grad_output @ dequantize(B): the gradient of A, in grad_output's dtype."""
    # The forward has checked codes and statistics; a tracer wants to see the checking ops.
    weight = _weight(B, quant_state, grad_output.dtype, checked=not is_watched())
    return torch.matmul(grad_output, weight)


def _weight(
    B: torch.Tensor, quant_state: QuantState, dtype: torch.dtype, checked: bool = False
) -> torch.Tensor:
    """The weight of shape (N, K) in ``dtype``; float64 by way of float32, which is exact."""
    narrow = torch.float32 if dtype == torch.float64 else dtype
    if checked:
        with DisableTorchFunctionSubclass():
            weight = quant_state.dequantize(B, narrow, checked=True)
    else:
        weight = quant_state.dequantize(B, narrow)
    return weight if narrow == dtype else weight.to(dtype)
