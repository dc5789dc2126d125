"""The base of linear layers that treat outlier dimensions of their input apart."""

from __future__ import annotations

import torch

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.utils import OutlierTracer


class OutlierAwareLinear(torch.nn.Linear):
    """A linear layer whose subclass says how to quantize with knowledge of outlier dimensions.

    A subclass defines `quantize_weight` and `forward_with_outliers`. At the first forward the
    dimensions are taken from the `OutlierTracer`, which must have seen a forward pass of the model,
    and the weight is quantized once.

    Args:
        input_features, output_features: K and N.
        bias: whether there is a bias of shape (N,).
        device: where to create the parameters.
    """

    def __init__(self, input_features, output_features, bias=True, device=None):
        super().__init__(input_features, output_features, bias, device)
        self.outlier_dim = None
        self.is_quantized = False

    def forward_with_outliers(self, x, outlier_idx):
        """The product of ``x``, (..., K), with the quantized weight, outliers apart."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_with_outliers.")

    def quantize_weight(self, w, outlier_idx):
        """What is to be stored as the weight in place of ``w``, (N, K)."""
        raise NotImplementedError(f"{type(self).__name__} must define quantize_weight.")

    def forward(self, x):
        """(..., K) -> (..., N)."""
        if self.outlier_dim is None:
            tracer = OutlierTracer.get_instance()
            if not tracer.is_initialized():
                raise InvalidArgumentError(
                    f"{type(self).__name__} before OutlierTracer.initialize",
                    "The tracer tells which dimensions hold outliers.",
                    "Call OutlierTracer.get_instance().initialize(model), then run the model once.",
                )
            self.outlier_dim = tracer.get_outliers(self.weight)
        if not self.is_quantized:
            self.weight.data.copy_(self.quantize_weight(self.weight, self.outlier_dim))
            self.is_quantized = True
        return self.forward_with_outliers(x, self.outlier_dim)
