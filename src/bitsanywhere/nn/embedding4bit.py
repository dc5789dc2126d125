"""Embeddings whose table is stored in 4 bits; only the rows asked for are dequantized."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import embedding

from bitsanywhere import ops
from bitsanywhere.functional import QuantState
from bitsanywhere.nn.params4bit import (
    Params4bit,
    fix_4bit_weight_quant_state_from_module,
    move_weight_to_meta,
)
from bitsanywhere.nn.state_dict import load_quantized_weight, save_quant_state
from bitsanywhere.ops.checks import as_bytes


class Embedding4bit(torch.nn.Embedding):
    """A lookup table that is quantized when the layer is moved to a device, CPU included.

    Args:
        num_embeddings, embedding_dim: shape of the table.
        dtype: dtype of the float table, and of the output; None is torch's default.
        quant_type: "nf4" or "fp4".
        quant_storage: dtype in which the codes are stored.
        device: where to create the table.
    """

    def __init__(
        self,
        num_embeddings,
        embedding_dim,
        dtype=None,
        quant_type="fp4",
        quant_storage=torch.uint8,
        device=None,
    ):
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.dtype = self.weight.data.dtype
        self.weight = Params4bit(
            self.weight.data,
            requires_grad=False,
            compress_statistics=False,
            quant_type=quant_type,
            quant_storage=quant_storage,
            module=self,  # type: ignore[arg-type]
        )
        self.quant_state: Any = None
        self.quant_storage = quant_storage

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Row numbers of any shape -> rows, shape (*input.shape, embedding_dim), in `dtype`."""
        fix_4bit_weight_quant_state_from_module(self)
        state = self.weight.quant_state
        rows = input.reshape(-1)
        if self.embedding_dim % state.blocksize == 0:
            values = self._whole_blocks(rows, state)
        else:
            values = self._by_element(rows, state)
        return values.view(*input.shape, self.embedding_dim).to(self.dtype)

    def _whole_blocks(self, rows: torch.Tensor, state: QuantState) -> torch.Tensor:
        """Rows made of whole blocks: gather codes and scales, then dequantize."""
        codes = embedding(rows, as_bytes(self.weight.data).view(self.num_embeddings, -1))
        scales = embedding(rows, state.unnested_absmax().view(self.num_embeddings, -1))
        shape = (rows.numel(), self.embedding_dim)
        return ops.dequantize_4bit(
            codes, scales.view(-1), state.blocksize, state.quant_type, shape, state.dtype
        )

    def _by_element(self, rows: torch.Tensor, state: QuantState) -> torch.Tensor:
        """Rows that share blocks with their neighbours: find code and scale of each element."""
        starts = torch.arange(self.num_embeddings, device=rows.device) * self.embedding_dim
        columns = torch.arange(self.embedding_dim, device=rows.device)
        position = embedding(rows, starts.unsqueeze(1)) + columns
        pairs = as_bytes(self.weight.data)[position >> 1]
        codes = torch.where(position % 2 == 0, pairs >> 4, pairs & 15)
        scales = state.unnested_absmax()[position // state.blocksize]
        return (state.code[codes.int()] * scales).to(state.dtype)

    def _apply(self, fn, recurse=True):
        move_weight_to_meta(self, fn)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_quant_state(self.weight, destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        remaining = load_quantized_weight(self, state_dict, prefix, assign)
        super()._load_from_state_dict(remaining, prefix, local_metadata, *args)


class EmbeddingFP4(Embedding4bit):
    """`Embedding4bit` with quant_type "fp4"."""

    def __init__(
        self, num_embeddings, embedding_dim, dtype=None, quant_storage=torch.uint8, device=None
    ):
        super().__init__(num_embeddings, embedding_dim, dtype, "fp4", quant_storage, device)


class EmbeddingNF4(Embedding4bit):
    """`Embedding4bit` with quant_type "nf4"."""

    def __init__(
        self, num_embeddings, embedding_dim, dtype=None, quant_storage=torch.uint8, device=None
    ):
        super().__init__(num_embeddings, embedding_dim, dtype, "nf4", quant_storage, device)
