"""Linear layers with an int8 weight, LLM.int8()."""

from __future__ import annotations

from typing import Any

import torch

from bitsanywhere.autograd import MatmulLtState, matmul
from bitsanywhere.nn.int8_weight import keep_with_weight, load_int8, ready_weight, save_int8
from bitsanywhere.nn.int8params import Int8Params


class Linear8bitLt(torch.nn.Linear):
    """y = x @ weight.T + bias in int8 (LLM.int8(), Dettmers et al. 2022, equation 8).

    The weight is quantized when the layer is moved to a device, CPU included, or at its first
    forward; with ``has_fp16_weights`` it stays float and is quantized for each product.

    Args:
        input_features, output_features: K and N.
        bias: whether there is a bias of shape (N,).
        has_fp16_weights: whether the weight stays float, so that it can be trained.
        threshold: magnitudes of the input from here on are outliers, whose columns are multiplied
            in floating point; 0 means there are none. 6.0 is usual.
        index: kept for programs that look at it.
        device: where to create the parameters.

    Attributes:
        state: a MatmulLtState; its CB and SCB are the weight's.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias=True,
        has_fp16_weights=True,
        threshold=0.0,
        index=None,
        device=None,
    ):
        super().__init__(input_features, output_features, bias, device)
        self.state = MatmulLtState()
        self.index = index
        self.state.threshold = threshold
        self.state.has_fp16_weights = has_fp16_weights
        self.state.use_pool = threshold > 0.0 and not has_fp16_weights
        self.weight = Int8Params(
            self.weight.data, requires_grad=has_fp16_weights, has_fp16_weights=has_fp16_weights
        )

    def init_8bit_state(self):
        """Shows the weight's codes and statistics in `state`."""
        self.state.CB, self.state.SCB = self.weight.CB, self.weight.SCB  # type: ignore[assignment]

    def forward(self, x: torch.Tensor):
        """(..., K) -> (..., N), in the dtype of ``x``."""
        state = self.state
        state.is_training = self.training
        weight: Any
        try:
            # Module.__getattr__, which self.weight goes through, takes ten times as long.
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:
            # Computed or set by something that took the parameters away (parametrization, FSDP).
            weight, bias = self.weight, self.bias
        if not state.has_fp16_weights:
            if weight.dtype != torch.int8 or getattr(weight, "SCB", None) is None:
                weight = ready_weight(self, state.SCB)
            if state.SCB is not weight.SCB or state.CB is None:
                self.init_8bit_state()
        return matmul(x, weight, None, state, 0.0, bias)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        keep_with_weight(self)
        if self.state.CB is not None and not self.state.has_fp16_weights:
            self.init_8bit_state()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        save_int8(self.weight, destination, prefix, keep_vars)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        remaining = load_int8(self, state_dict, prefix, assign)
        if remaining is not state_dict:
            self.state.reset_grads()
        super()._load_from_state_dict(remaining, prefix, local_metadata, *args)
