"""Differentiable products with quantized weights."""

from __future__ import annotations

from typing import Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.quant_state import QuantState


class MatMul4Bit(torch.autograd.Function):
    """A @ dequantize(B).T + bias; gradients flow to A and bias, the weight is frozen."""

    @staticmethod
    def forward(ctx, A, B, out=None, bias=None, quant_state: Optional[QuantState] = None):
        result = _forward(A, B, quant_state, bias)
        ctx.quant_state = quant_state
        ctx.has_bias = bias is not None
        ctx.save_for_backward(B)
        return result if out is None else out.copy_(result)

    @staticmethod
    def backward(ctx, grad_output):
        (B,) = ctx.saved_tensors
        grad_A = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_A = input_gradient(grad_output, B, ctx.quant_state)
        if ctx.has_bias and ctx.needs_input_grad[3]:
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
        A: float32, float16 or bfloat16 of shape (..., K).
        B: codes of the frozen weight of shape (N, K), as stored or as a transposed view.
        quant_state: state of B.
        out: receives the result.
        bias: shape (N,), A's dtype.

    Returns:
        A tensor of A's dtype and shape (..., N).
    """
    if quant_state is None:
        raise InvalidArgumentError(
            "matmul_4bit: quant_state is None", "Give the state that quantize_4bit returned with B."
        )
    if torch.is_grad_enabled() and (A.requires_grad or (bias is not None and bias.requires_grad)):
        return MatMul4Bit.apply(A, B, out, bias, quant_state)
    result = _forward(A, B, quant_state, bias)
    return result if out is None else out.copy_(result)


def _forward(A, B, quant_state, bias) -> torch.Tensor:
    quant_state.require_4bit("matmul_4bit")
    absmax, absmax_8bit, absmax_code, absmax_offset = quant_state.gemm_statistics()
    return ops.gemm_4bit(
        A,
        B,
        quant_state.shape,
        absmax,
        quant_state.blocksize,
        quant_state.quant_type,
        bias,
        absmax_8bit,
        absmax_code,
        absmax_offset,
    )


def input_gradient(
    grad_output: torch.Tensor, B: torch.Tensor, quant_state: QuantState
) -> torch.Tensor:
    """grad_output @ dequantize(B): the gradient of A, in grad_output's dtype."""
    weight = ops.dequantize_4bit(
        B,
        quant_state.unnested_absmax(),
        quant_state.blocksize,
        quant_state.quant_type,
        quant_state.shape,
        grad_output.dtype,
    )
    return torch.matmul(grad_output, weight)
