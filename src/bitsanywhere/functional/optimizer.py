"""One optimizer step of one tensor, under bitsandbytes' names; thin over the ops."""

from __future__ import annotations

from typing import Optional

import torch

from bitsanywhere import ops


@torch.no_grad()
def optimizer_update_32bit(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    beta1: float,
    eps: float,
    step: int,
    lr: float,
    state2: Optional[torch.Tensor] = None,
    beta2: float = 0.0,
    beta3: float = 0.0,
    alpha: float = 0.0,
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    unorm_vec: Optional[torch.Tensor] = None,
    max_unorm: float = 0.0,
    skip_zeros=False,
) -> None:
    """Updates ``p`` and its float32 states in place; see `ops.optimizer_rules`.

    Args:
        optimizer_name: adam, momentum, rmsprop, adagrad, lion, lars, lamb or ademamix.
        g: gradient, of the dtype and size of ``p``; all tensors contiguous, on one device.
        p: parameter, float32, float16 or bfloat16.
        state1: float32 of p's size, for ademamix (2, *p.shape).
        step: which step this is, from 1 on.
        state2: float32 of p's size, for rules with two states.
        gnorm_scale: factor of the gradient.
        unorm_vec: float32 of one element, scratch space where ``max_unorm`` is above 0.
        max_unorm: largest norm of the update as a share of the norm of ``p``; 0 for no limit.
        skip_zeros: leave elements alone whose gradient is zero.

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    norm = 0.0
    if max_unorm > 0:
        norm = float(torch.linalg.vector_norm(p, dtype=torch.float32))
    ops.optimizer_update_32bit(
        optimizer_name, g, p, state1, state2, unorm_vec, max_unorm, norm, beta1, beta2, beta3,
        alpha, eps, weight_decay, step, lr, gnorm_scale, skip_zeros,
    )  # fmt: skip


@torch.no_grad()
def optimizer_update_8bit_blockwise(
    optimizer_name: str,
    g: torch.Tensor,
    p: torch.Tensor,
    state1: torch.Tensor,
    state2: Optional[torch.Tensor],
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    eps: float,
    step: int,
    lr: float,
    qmap1: torch.Tensor,
    qmap2: Optional[torch.Tensor],
    absmax1: torch.Tensor,
    absmax2: Optional[torch.Tensor],
    weight_decay: float = 0.0,
    gnorm_scale: float = 1.0,
    skip_zeros=False,
) -> None:
    """Updates ``p`` and its 8-bit states in place; see `ops.optimizer_update_8bit_blockwise`.

    Args: as `optimizer_update_32bit`, but the states are uint8 codes in the codebooks ``qmap1``
    and ``qmap2`` (float32 of 256 values), scaled by ``absmax1`` and ``absmax2`` (float32, one a
    block of 256 elements; for ademamix absmax1 has shape (2, blocks)).

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    ops.optimizer_update_8bit_blockwise(
        optimizer_name, g, p, state1, state2, beta1, beta2, beta3, alpha, eps, step, lr, qmap1,
        qmap2, absmax1, absmax2, weight_decay, gnorm_scale, skip_zeros,
    )  # fmt: skip
