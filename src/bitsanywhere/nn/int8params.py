"""Int8Params: a parameter that becomes row-wise int8 codes the first time it reaches a device."""

from __future__ import annotations

import copy
from typing import Any, Optional, Union

import torch

from bitsanywhere import ops
from bitsanywhere.nn.params4bit import indexed


class Int8Params(torch.nn.Parameter):
    """A weight of shape (N, K), either still in float or as int8 codes.

    ``to(device)`` quantizes a float weight on any device but "meta", unless it is to stay float; a
    quantized one is moved with its statistics, and keeps its dtype whatever dtype is asked for.

    Args:
        data: float weight, or int8 codes.
        requires_grad: a quantized weight is frozen; True is for the float one.
        has_fp16_weights: whether the weight stays float.
        CB: kept for its place in the signature; the codes are the data.
        SCB: float32 statistics (N,) of the codes.
        kwargs: attributes that frameworks attach; ignored.
    """

    has_fp16_weights: bool
    SCB: Any

    def __new__(
        cls,
        data: Optional[torch.Tensor] = None,
        requires_grad=True,
        has_fp16_weights=False,
        CB: Optional[torch.Tensor] = None,
        SCB: Optional[torch.Tensor] = None,
        **kwargs,
    ):
        weight = torch.empty(0) if data is None else data
        grad = requires_grad and weight.is_floating_point()
        self = torch.Tensor._make_subclass(cls, weight, grad)
        self.has_fp16_weights = has_fp16_weights
        self.SCB = SCB
        return self

    @property
    def CB(self) -> torch.Tensor | None:
        """The int8 codes, or None while the weight is float."""
        return self.data if self.dtype == torch.int8 else None

    @CB.setter
    def CB(self, codes: torch.Tensor | None) -> None:
        if codes is not None:
            self.data = codes

    def cpu(self):
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: Union[int, torch.device, str, None] = None, non_blocking: bool = False):
        """As ``to`` of a CUDA device."""
        return self.to(indexed("cuda", device), non_blocking=non_blocking)

    def xpu(self, device: Union[int, torch.device, str, None] = None, non_blocking: bool = False):
        """As ``to`` of an XPU device."""
        return self.to(indexed("xpu", device), non_blocking=non_blocking)

    def to(self, *args, **kwargs):
        """Moves, quantizing a float weight that goes to a real device; see the class."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        codes = self.dtype == torch.int8
        real = device is not None and device.type != "meta" and not self.is_meta
        if real and not codes and not self.has_fp16_weights:
            return self.quantize(device)
        moved = super().to(device=device, dtype=None if codes else dtype, non_blocking=non_blocking)
        if moved is self:
            return self
        scales = self.SCB if self.SCB is None or device is None else self.SCB.to(device)
        return self._like(moved.detach(), scales)

    @torch.no_grad()
    def quantize(self, device: torch.device) -> Int8Params:
        """Turns this parameter's float data into codes on ``device``, in place; returns it."""
        weight = self.data.to(device)
        # bitsandbytes quantizes what float16 makes of a weight, so that codes agree everywhere.
        codes, scales, _ = ops.int8_vectorwise_quant(weight.to(torch.float16), 0.0)
        if not scales.isfinite().all():
            codes, scales, _ = ops.int8_vectorwise_quant(weight, 0.0)
        self.requires_grad_(False)
        self.data, self.SCB = codes, scales
        return self

    def _like(self, data: torch.Tensor, scales: torch.Tensor | None) -> Int8Params:
        """A parameter with ``data`` and ``scales`` and all else as in this one."""
        # accelerate's init_empty_weights leaves its own requires_grad among the attributes.
        fields = dict(self.__dict__, SCB=scales, requires_grad=self.requires_grad)
        return type(self)(data, **fields)

    def __deepcopy__(self, memo):
        result = self._like(self.data.clone(), copy.deepcopy(self.SCB, memo))
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol):
        fields = dict(self.__dict__, requires_grad=self.requires_grad)
        return _rebuild, (type(self), self.data, fields)


def _rebuild(cls: type[Int8Params], data: torch.Tensor, fields: dict[str, Any]) -> Int8Params:
    return cls(data, **fields)
