"""Differentiable products with row-wise quantized int8 weights (LLM.int8(), Dettmers et al. 2022).

The forward product is in int8, save in training on a CPU, where it is in floating point with the
dequantized weight, as bitsandbytes has it. Gradients always are in floating point: that of A by the
dequantized weight, that of a float weight by A itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch

from bitsanywhere import ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional.blockwise import into
from bitsanywhere.ops.int8_vectorwise_dequant import INVERSE
from bitsanywhere.ops.registry import is_transformed, is_watched

# Where bitsandbytes trains in floating point.
_FLOAT_TRAINING = ("cpu", "xpu")


class GlobalOutlierPooler:
    """The outlier columns seen by all layers whose input has the size of the first one's.

    Use `get_instance`: there is one.
    """

    _instance: ClassVar[Optional[GlobalOutlierPooler]] = None

    def __init__(self):
        raise RuntimeError("GlobalOutlierPooler is shared: take it from get_instance().")

    def initialize(self):
        """Forgets what was seen."""
        self.outliers: set[int] = set()
        self.model_dim: int | None = None

    @classmethod
    def get_instance(cls):
        """The one pooler."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def add_outliers(self, outlier_idx, feature_dim):
        """Adds columns, a tensor of indices, of an input of ``feature_dim`` columns."""
        if self.model_dim is None:
            self.model_dim = feature_dim
        # A feed-forward layer inside a block has columns of its own.
        if feature_dim == self.model_dim:
            self.outliers.update(outlier_idx.tolist())

    def get_current_outlier_idx(self):
        """The columns so far, ascending, int64."""
        return torch.tensor(sorted(self.outliers), dtype=torch.int64)


@dataclass
class MatmulLtState:
    """What a layer knows of its weight.

    Attributes:
        CB, SCB: int8 codes (N, K) of the weight and their float32 statistics (N,).
        threshold: magnitudes of activations from here on are outliers; 0 means there are none.
        has_fp16_weights: whether the weight is float and quantized anew for each product.
        is_training: whether the layer trains.
        idx, subB, SB, SBt, CBt, outlier_pool, force_no_igemmlt, use_pool,
        has_accumulated_gradients: kept for programs that look at them; not used here.
    """

    force_no_igemmlt: bool = False
    CB: Optional[torch.Tensor] = None
    SB: Optional[torch.Tensor] = None
    SCB: Optional[torch.Tensor] = None
    SBt: Optional[torch.Tensor] = None
    CBt: Optional[torch.Tensor] = None
    subB: Optional[torch.Tensor] = None
    outlier_pool: Optional[GlobalOutlierPooler] = None
    idx: Optional[torch.Tensor] = None
    has_accumulated_gradients = False
    threshold = 0.0
    is_training = True
    has_fp16_weights = True
    use_pool = False

    def reset_grads(self):
        """Forgets the weight; the layer's parameter still holds it."""
        self.CB = self.SB = self.SCB = self.SBt = self.CBt = None


class MatMul8bitLt(torch.autograd.Function):
    """A @ B.T + bias in int8, outlier columns of A in floating point."""

    @staticmethod
    def forward(
        ctx,
        A: torch.Tensor,
        B: torch.Tensor,
        out: Optional[torch.Tensor] = None,
        bias: Optional[torch.Tensor] = None,
        state: Optional[MatmulLtState] = None,
    ):
        state = MatmulLtState() if state is None else state
        CB, SCB = _remember(ctx, A, B, state)
        return into(_int8_product(A, CB, SCB, state.threshold, bias), out, "out")

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor):
        return _gradients(ctx, grad_output)


class MatMul8bitFp(torch.autograd.Function):
    """A @ B.T + bias in floating point, with the weight as its codes say."""

    @staticmethod
    def forward(ctx, A, B, out=None, bias=None, state=None):
        state = MatmulLtState() if state is None else state
        CB, SCB = _remember(ctx, A, B, state)
        return into(_float_product(A, CB, SCB, bias), out, "out")

    @staticmethod
    def backward(ctx, grad_output):
        return _gradients(ctx, grad_output)


def matmul(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    state: Optional[MatmulLtState] = None,
    threshold=0.0,
    bias: Optional[torch.Tensor] = None,
):
    """A @ B.T + bias in int8 (LLM.int8(), Dettmers et al. 2022, equation 8).

    Args:
        A: float32, float16, bfloat16 or float64 of shape (..., K); under autocast it is cast.
        B: weight of shape (N, K), float, or int8 codes whose statistics are in ``state``.
        out: receives the result.
        state: what is known of the weight; None for a float weight.
        threshold: if above 0, becomes the state's.
        bias: shape (N,).

    Returns:
        A tensor of A's dtype and shape (..., N).
    """
    state = MatmulLtState() if state is None else state
    if threshold > 0.0:
        state.threshold = threshold
    if torch._C._is_any_autocast_enabled() and not A.is_meta:
        A, bias = autocast(A, bias)
    if bias is not None and bias.dtype != A.dtype:
        bias = bias.to(A.dtype)
    in_float = state.is_training and A.device.type in _FLOAT_TRAINING
    transformed = is_watched() and is_transformed()
    if (
        torch.is_grad_enabled()
        and not transformed
        and (A.requires_grad or B.requires_grad or (bias is not None and bias.requires_grad))
    ):
        return (MatMul8bitFp if in_float else MatMul8bitLt).apply(A, B, out, bias, state)
    CB, SCB = _codes(B, state)
    if in_float or transformed:
        return into(_float_product(A, CB, SCB, bias), out, "out")
    return into(_int8_product(A, CB, SCB, state.threshold, bias), out, "out")


def autocast(
    A: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A and bias in the dtype that autocast asks for on their device, if it is on there."""
    device = A.device.type
    if not torch.is_autocast_enabled(device) or not A.is_floating_point():
        return A, bias
    dtype = torch.get_autocast_dtype(device)
    return A.to(dtype), None if bias is None else bias.to(dtype)


def _codes(B: torch.Tensor, state: MatmulLtState) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight's codes and statistics, made now if it is float."""
    if B.dtype != torch.int8:
        if state.has_fp16_weights or state.CB is None or state.SCB is None:
            CB, SCB, _ = ops.int8_vectorwise_quant(B.detach(), 0.0)
            # The compiler of torch 2.8 to 2.10 refuses such an effect inside an autograd function.
            if not torch.compiler.is_compiling():
                state.CB, state.SCB = CB, SCB
            return CB, SCB
        return state.CB, state.SCB
    if state.SCB is None:
        raise InvalidArgumentError(
            "matmul: B is torch.int8 and state.SCB is None",
            "SCB holds the statistics of B's rows.",
            "Give the statistics that int8_vectorwise_quant returned with B.",
        )
    return B, state.SCB


def _remember(
    ctx: Any, A: torch.Tensor, B: torch.Tensor, state: MatmulLtState
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keeps what the backward needs; returns the weight's codes and statistics."""
    # Not save_for_backward: the codes are nothing for hooks on saved tensors, and may have been
    # made in inference mode.
    ctx.CB, ctx.SCB = _codes(B, state)
    ctx.dtype_B = B.dtype
    ctx.save_for_backward(A if ctx.needs_input_grad[1] else None)
    return ctx.CB, ctx.SCB


def _gradients(ctx: Any, grad_output: torch.Tensor) -> tuple[Any, ...]:
    """Of A, B, None for out, of bias, None for the state."""
    grad_A = grad_B = grad_bias = None
    flat = grad_output.reshape(-1, grad_output.shape[-1])
    if ctx.needs_input_grad[0]:
        grad_A = torch.matmul(grad_output, dequantized(ctx.CB, ctx.SCB, grad_output.dtype))
    if ctx.needs_input_grad[1]:
        (A,) = ctx.saved_tensors
        grad_B = (flat.t() @ A.reshape(-1, A.shape[-1])).to(ctx.dtype_B)
    if ctx.needs_input_grad[3]:
        grad_bias = flat.sum(0)
    return grad_A, grad_B, None, grad_bias, None


def _float_product(
    A: torch.Tensor, CB: torch.Tensor, SCB: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.nn.functional.linear(A, dequantized(CB, SCB, A.dtype), bias)


def _int8_product(
    A: torch.Tensor, CB: torch.Tensor, SCB: torch.Tensor, threshold: float, bias: Any
) -> torch.Tensor:
    if A.dtype == torch.float64:
        narrow = None if bias is None else bias.float()
        return ops.int8_linear(A.float(), CB, SCB, threshold, narrow).double()
    return ops.int8_linear(A, CB, SCB, threshold, bias)


def dequantized(CB: torch.Tensor, SCB: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight of int8 codes (N, K) and statistics (N,) in ``dtype``."""
    return CB.detach().to(dtype).mul_((SCB * INVERSE).unsqueeze(1))
