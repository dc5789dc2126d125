"""An embedding whose table is stored in int8; only the rows asked for are dequantized."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding

from bitsanywhere import ops
from bitsanywhere.nn.int8_weight import keep_with_weight, load_int8, ready_weight, save_int8
from bitsanywhere.nn.int8params import Int8Params


class Embedding8bit(torch.nn.Embedding):
    """A lookup table that is quantized when the layer is moved to a device, CPU included.

    Args:
        num_embeddings, embedding_dim: shape of the table.
        device: where to create the table.
        dtype: dtype of the float table, and of the output; None is torch's default.
    """

    def __init__(self, num_embeddings, embedding_dim, device=None, dtype=None):
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.dtype = self.weight.data.dtype
        self.weight = Int8Params(self.weight.data, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Row numbers of any shape -> rows, shape (*input.shape, embedding_dim), in `dtype`."""
        weight = self.weight
        if weight.dtype != torch.int8 or getattr(weight, "SCB", None) is None:
            weight = ready_weight(self, None)
        codes = embedding(input, weight.data)
        scales = embedding(input, weight.SCB.view(-1, 1))
        return ops.int8_vectorwise_dequant(codes, scales).to(self.dtype)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        keep_with_weight(self)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_int8(self.weight, destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        remaining = load_int8(self, state_dict, prefix, assign)
        super()._load_from_state_dict(remaining, prefix, local_metadata, *args)
