"""Float embeddings whose optimizer state stays in 32 bits ("8-bit Optimizers via Block-wise
Quantization", Dettmers et al. 2022, section 2.3)."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch.nn.functional import embedding

from bitsanywhere.optim.manager import GlobalOptimManager


class Embedding(torch.nn.Embedding):
    """torch's embedding with Xavier uniform initialization and 32-bit optimizer state.

    Args: as for torch.nn.Embedding.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: Optional[int] = None,
        max_norm: Optional[float] = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Optional[torch.Tensor] = None,
        device: Optional[torch.device] = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device=device,
        )
        _keep_in_32_bits(self)

    def reset_parameters(self) -> None:
        """Fills the table from the Xavier uniform distribution."""
        _reset(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Row numbers of any shape -> rows, shape (*input.shape, embedding_dim)."""
        return _rows(self, input)


class StableEmbedding(torch.nn.Embedding):
    """An `Embedding` followed by layer normalization.

    Args: as for torch.nn.Embedding.

    Attributes:
        norm: the normalization over embedding_dim.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: Optional[int] = None,
        max_norm: Optional[float] = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Optional[torch.Tensor] = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device=device,
            dtype=dtype,
        )
        self.norm = torch.nn.LayerNorm(embedding_dim, device=device)
        _keep_in_32_bits(self)

    def reset_parameters(self) -> None:
        """Fills the table from the Xavier uniform distribution."""
        _reset(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Row numbers of any shape -> normalized rows, (*input.shape, embedding_dim).

        They are normalized in the dtype of the normalization's weight.
        """
        return self.norm(_rows(self, input).to(self.norm.weight.dtype)).to(self.weight.dtype)


def _keep_in_32_bits(module: torch.nn.Embedding) -> None:
    manager = GlobalOptimManager.get_instance()
    manager.register_module_override(module, "weight", {"optim_bits": 32})


def _reset(module: torch.nn.Embedding) -> None:
    torch.nn.init.xavier_uniform_(module.weight)
    module._fill_padding_idx_with_zero()


def _rows(module: Any, input: torch.Tensor) -> torch.Tensor:
    return embedding(
        input,
        module.weight,
        module.padding_idx,
        module.max_norm,
        module.norm_type,
        module.scale_grad_by_freq,
        module.sparse,
    )
