"""Differentiable products with quantized weights."""

from __future__ import annotations

from typing import Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops.checks import FLOATS
from bitsanywhere.ops.registry import is_transformed, is_watched
from bitsanywhere.quant_state import QuantState


class MatMul4Bit(torch.autograd.Function):
    """A @ dequantize(B).T + bias; gradients flow to A and bias, the weight is frozen."""

    @staticmethod
    def forward(ctx, A, B, out=None, bias=None, quant_state: Optional[QuantState] = None):
        result = _forward(A, B, quant_state, bias)
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
    device = A.device.type
    if not A.is_meta and torch.is_autocast_enabled(device) and A.is_floating_point():
        dtype = torch.get_autocast_dtype(device)
        A, bias = A.to(dtype), None if bias is None else bias.to(dtype)
    with_grad = A.requires_grad or (bias is not None and bias.requires_grad)
    if is_transformed():
        quant_state.require_4bit("matmul_4bit")
        result = torch.nn.functional.linear(A, _weight(B, quant_state, A.dtype), bias)
    elif with_grad and torch.is_grad_enabled():
        return MatMul4Bit.apply(A, B, out, bias, quant_state)
    else:
        result = _forward(A, B, quant_state, bias)
    return result if out is None else out.copy_(result)


def _forward(A, B, quant_state, bias) -> torch.Tensor:
    quant_state.require_4bit("matmul_4bit")
    if A.dtype == torch.float64:
        return torch.nn.functional.linear(A, _weight(B, quant_state, A.dtype), bias)
    absmax, absmax_8bit, absmax_code, absmax_offset = statistics = quant_state.gemm_statistics()
    shape = quant_state.shape
    arguments = (
        A,
        B,
        shape,
        absmax,
        quant_state.blocksize,
        quant_state.quant_type,
        bias,
        absmax_8bit,
        absmax_code,
        absmax_offset,
    )
    if type(A) is not torch.Tensor or A.is_meta or is_watched():
        return ops.gemm_4bit(*arguments)
    # Without this every attribute of a Params4bit takes a detour through Python.
    with torch._C.DisableTorchFunctionSubclass():
        # Checking a weight takes longer than launching its kernel, so it is done once.
        weight = (B.data_ptr(), B.numel(), B.dtype, *map(id, statistics), *arguments[4:6], shape)
        if quant_state.checked_weight == weight and _fits(A, shape, B.device, bias):
            return ops.gemm_4bit.trusted(*arguments)
        result = ops.gemm_4bit.eager(*arguments)
        quant_state.mark_checked(weight, statistics)
        return result


def _fits(
    A: torch.Tensor, shape: torch.Size, device: torch.device, bias: torch.Tensor | None
) -> bool:
    """Whether A and bias are surely right for a weight that was checked before."""
    if A.dtype not in FLOATS or A.dim() == 0 or A.shape[-1] != shape[1] or A.device != device:
        return False
    return bias is None or (
        bias.dtype == A.dtype and bias.numel() == shape[0] and bias.device == device
    )


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
    fixed = (quant_state.blocksize, quant_state.quant_type, quant_state.shape, narrow)
    if checked:
        with torch._C.DisableTorchFunctionSubclass():
            scales = quant_state.unnested_absmax(checked=True)
            weight = ops.dequantize_4bit.trusted(B, scales, *fixed)
    else:
        weight = ops.dequantize_4bit(B, quant_state.unnested_absmax(), *fixed)
    return weight if narrow == dtype else weight.to(dtype)
