"""Linear layers with a frozen 4-bit weight."""

from __future__ import annotations

from typing import Any

import torch

from bitsanywhere.autograd import matmul_4bit
from bitsanywhere.nn.params4bit import (
    Params4bit,
    fix_4bit_weight_quant_state_from_module,
    move_weight_to_meta,
)
from bitsanywhere.nn.state_dict import load_quantized_weight, save_quant_state


class Linear4bit(torch.nn.Linear):
    """y = x @ dequantize(weight).T + bias (QLoRA, Dettmers et al. 2023, equation 5).

    The weight is quantized when the layer is moved to a device, CPU included.

    Args:
        input_features, output_features: K and N.
        bias: whether there is a bias of shape (N,).
        compute_dtype: dtype of the product; None takes the input's: the first one's for good if
            that is float32 or bfloat16.
        compress_statistics: quantize the statistics too (double quantization).
        quant_type: "nf4" or "fp4".
        quant_storage: dtype in which the codes are stored.
        device: where to create the parameters.
    """

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_type="fp4",
        quant_storage=torch.uint8,
        device=None,
    ):
        super().__init__(input_features, output_features, bias, device)
        self.weight = Params4bit(
            self.weight.data,
            requires_grad=False,
            compress_statistics=compress_statistics,
            quant_type=quant_type,
            quant_storage=quant_storage,
            module=self,
        )
        self.compute_dtype = compute_dtype
        self.compute_type_is_set = compute_dtype is not None
        self.quant_state: Any = None
        self.quant_storage = quant_storage

    def set_compute_type(self, x: torch.Tensor):
        """Fixes the compute dtype by the first input ``x``, where none was given."""
        if self.compute_dtype is None and x.dtype in (torch.float32, torch.bfloat16):
            self.compute_dtype = x.dtype

    def forward(self, x: torch.Tensor):
        """(..., K) -> (..., N), in the dtype of ``x``."""
        try:
            # Module.__getattr__, which self.weight goes through, takes ten times as long.
            weight, bias = self._parameters["weight"], self._parameters["bias"]
        except KeyError:
            # Computed or set by something that took the parameters away (parametrization, FSDP).
            weight, bias = self.weight, self.bias
        state = getattr(weight, "quant_state", None)
        if state is None:
            fix_4bit_weight_quant_state_from_module(self)
            weight = self.weight
            state = weight.quant_state
        if not self.compute_type_is_set:
            self.set_compute_type(x)
            self.compute_type_is_set = True
        compute_dtype = self.compute_dtype
        if compute_dtype is None or x.dtype is compute_dtype:
            if bias is not None and bias.dtype != x.dtype:
                bias = bias.to(x.dtype)
            return matmul_4bit(x, weight, state, None, bias)
        bias = None if bias is None else bias.to(compute_dtype)
        result = matmul_4bit(x.to(compute_dtype), weight, state, None, bias)
        return result.to(x.dtype)

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


class LinearFP4(Linear4bit):
    """`Linear4bit` with quant_type "fp4"."""

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_storage=torch.uint8,
        device=None,
    ):
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "fp4",
            quant_storage,
            device,
        )


class LinearNF4(Linear4bit):
    """`Linear4bit` with quant_type "nf4"."""

    def __init__(
        self,
        input_features,
        output_features,
        bias=True,
        compute_dtype=None,
        compress_statistics=True,
        quant_storage=torch.uint8,
        device=None,
    ):
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "nf4",
            quant_storage,
            device,
        )
