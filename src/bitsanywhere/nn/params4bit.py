"""Params4bit: a parameter that becomes 4-bit codes the first time it reaches a real device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Optional, Union

import torch

from bitsanywhere import ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.functional import QuantState, quantize_4bit
from bitsanywhere.ops.checks import check_packed
from bitsanywhere.ops.registry import treat_as_plain

if TYPE_CHECKING:
    from bitsanywhere.nn.linear4bit import Linear4bit


class Params4bit(torch.nn.Parameter):
    """A weight, either still in float or as 4-bit codes of shape (bytes / itemsize, 1).

    ``to(device)`` quantizes a float weight on any device but "meta"; a quantized one is moved with
    its statistics, and keeps its storage dtype whatever dtype is asked for.

    Args:
        data: float weight, or codes if ``bnb_quantized``.
        requires_grad: a quantized weight is frozen; True is for the float one.
        quant_state: state of the codes.
        blocksize: elements a block; None means 64.
        compress_statistics: quantize the statistics too.
        quant_type: "nf4" or "fp4".
        quant_storage: dtype in which codes are stored.
        module: the layer that owns the parameter and shares its state.
        bnb_quantized: whether ``data`` is codes already.
        kwargs: attributes that frameworks attach; ignored.
    """

    blocksize: int
    compress_statistics: bool
    quant_type: str
    quant_state: Any
    quant_storage: torch.dtype
    bnb_quantized: bool
    module: Any

    def __new__(
        cls,
        data: Optional[torch.Tensor] = None,
        requires_grad=False,
        quant_state: Optional[QuantState] = None,
        blocksize: Optional[int] = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        module: Optional["Linear4bit"] = None,
        bnb_quantized: bool = False,
        **kwargs,
    ) -> "Params4bit":
        data = torch.empty(0) if data is None else data
        self = torch.Tensor._make_subclass(cls, data, requires_grad)
        self.blocksize = 64 if blocksize is None else blocksize
        self.compress_statistics = compress_statistics
        self.quant_type = quant_type
        self.quant_state = quant_state
        self.quant_storage = quant_storage
        self.bnb_quantized = bnb_quantized
        self.module = module
        return self

    @classmethod
    def from_prequantized(
        cls,
        data: torch.Tensor,
        quantized_stats: dict[str, Any],
        requires_grad: bool = False,
        device="cuda",
        module: Optional["Linear4bit"] = None,
        **kwargs,
    ) -> "Params4bit":
        """A parameter from what a checkpoint holds.

        Args:
            data: codes, in their storage dtype.
            quantized_stats: the other entries of the state_dict, keys with any prefix.
            device: where to put codes and statistics.

        Raises:
            CheckpointError: if the statistics are missing, inconsistent or out of bounds.
            InvalidArgumentError: if the codes do not fit the shape in the statistics.
        """
        state = QuantState.from_dict(quantized_stats, device=device)
        check_packed("from_prequantized", "data", data, state.shape.numel())
        param = cls(
            data.to(device),
            requires_grad=requires_grad,
            quant_state=state,
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
            quant_storage=data.dtype,
            module=module,
            bnb_quantized=True,
        )
        if module is not None:
            module.quant_state = state
        expect_products(param, param.device, state.shape, state.dtype)
        return param

    def cpu(self):
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: Union[int, torch.device, str, None] = None, non_blocking: bool = False):
        """As ``to`` of a CUDA device."""
        return self.to(indexed("cuda", device), non_blocking=non_blocking)

    def xpu(self, device: Union[int, torch.device, str, None] = None, non_blocking: bool = False):
        """As ``to`` of an XPU device."""
        return self.to(indexed("xpu", device), non_blocking=non_blocking)

    def half(self, *args):
        """As ``to(torch.float16)``: casts a float weight, leaves codes as they are."""
        return self.to(torch.float16)

    def bfloat16(self, *args):
        """As ``to(torch.bfloat16)``."""
        return self.to(torch.bfloat16)

    def float(self, *args):
        """As ``to(torch.float32)``."""
        return self.to(torch.float32)

    def double(self, *args):
        """As ``to(torch.float64)``."""
        return self.to(torch.float64)

    def to(self, *args, **kwargs):
        """Moves, quantizing a float weight that goes to a real device; see the class."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if not self.bnb_quantized:
            if device is not None and device.type != "meta" and not self.is_meta:
                return self._quantize(device)
            moved = super().to(device=device, dtype=dtype, non_blocking=non_blocking)
            return self._like(moved, self.quant_state)
        if device is None or device == self.device:
            return self
        if device.type != "meta" and self.quant_state is not None:
            self.quant_state.to(device)
        moved = super().to(device=device, non_blocking=non_blocking)
        if self.quant_state is not None:
            expect_products(self, moved.device, self.quant_state.shape, self.quant_state.dtype)
        return self._like(moved, self.quant_state)

    def _quantize(self, device: torch.device) -> "Params4bit":
        """Turns this parameter's data into codes on ``device``, in place; returns it."""
        weight = self.data.to(device)
        expect_products(self, weight.device, weight.shape, weight.dtype)
        codes, self.quant_state = quantize_4bit(
            weight,
            blocksize=self.blocksize,
            compress_statistics=self.compress_statistics,
            quant_type=self.quant_type,
            quant_storage=self.quant_storage,
        )
        if not codes.is_floating_point():
            self.requires_grad_(False)
        self.data = codes
        self.bnb_quantized = True
        if self.module is not None:
            self.module.quant_state = self.quant_state
        return self

    def _like(self, data: torch.Tensor, state: Optional[QuantState]) -> "Params4bit":
        """A parameter with ``data`` and ``state`` and all else as in this one."""
        # accelerate's init_empty_weights leaves its own requires_grad among the attributes.
        fields = dict(self.__dict__, quant_state=state, requires_grad=self.requires_grad)
        return type(self)(data.detach(), **fields)

    def __deepcopy__(self, memo):
        state = copy.deepcopy(self.quant_state, memo)
        result = self._like(self.data.clone(), state)
        memo[id(self)] = result
        result.module = memo.get(id(self.module), self.module)
        return result

    def __copy__(self):
        return self._like(self.data, self.quant_state)

    def __reduce_ex__(self, protocol):
        fields = dict(self.__dict__, requires_grad=self.requires_grad)
        return _rebuild, (type(self), self.data, fields)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Pieces of a parameter (FSDP, tensor parallel loading) stay parameters of its state."""
        kwargs = {} if kwargs is None else kwargs
        result = super().__torch_function__(func, types, args, kwargs)
        if func in (torch.chunk, torch.split) and args and isinstance(args[0], cls):
            return tuple(args[0]._like(piece, args[0].quant_state) for piece in result)
        return result


def expect_products(
    weight: Params4bit, device: torch.device, shape: torch.Size, dtype: torch.dtype
) -> None:
    """Lets a linear layer's kernels be compiled for a GPU while the rest of a model is loaded.

    Args:
        device: where the weight is, or will be.
        shape, dtype: of the weight, quantized or not; the layer's compute dtype goes first.
    """
    module: Any = weight.module
    if device.type != "cuda" or not isinstance(module, torch.nn.Linear) or len(shape) != 2:
        return
    nested = weight.compress_statistics
    dtype = getattr(module, "compute_dtype", None) or dtype
    ops.gemm_4bit.expect(device, shape, weight.blocksize, nested, dtype)
    if nested and not weight.bnb_quantized:
        ops.nest_absmax.expect(device)


def indexed(kind: str, device: Union[int, torch.device, str, None]) -> torch.device:
    if device is None:
        return torch.device(kind)
    return torch.device(kind, device) if isinstance(device, int) else torch.device(device)


def _rebuild(cls: type[Params4bit], data: torch.Tensor, fields: dict[str, Any]) -> Params4bit:
    return cls(data, **fields)


def fix_4bit_weight_quant_state_from_module(module: Any) -> None:
    """Gives the weight of ``module`` its state back after a framework (FSDP) replaced it.

    Raises:
        InvalidArgumentError: if neither the weight nor the module has a quantization state.
    """
    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        return
    state = getattr(module, "quant_state", None)
    if state is None:
        raise InvalidArgumentError(
            f"The weight of {type(module).__name__} is not quantized ({weight.dtype}, "
            f"{tuple(weight.shape)} on {weight.device})",
            "A 4-bit layer quantizes its weight when it is moved to a device.",
            'Call layer.to("cuda") or layer.to("cpu") before the first forward.',
        )
    if not isinstance(weight, Params4bit):
        weight = Params4bit(
            weight.data,
            quant_storage=module.quant_storage,
            bnb_quantized=True,
            module=module,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            compress_statistics=state.nested,
        )
        module.weight = weight
    weight.quant_state = state


def move_weight_to_meta(module: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Applies ``fn`` to the weight of ``module`` if it moves tensors to "meta".

    `torch.nn.Module._apply` cannot: it would build a Parameter of what ``detach`` returns, and that
    is a plain tensor. Its state stays where it is, as in `Params4bit.to`.
    """
    weight = module._parameters.get("weight")
    if isinstance(weight, Params4bit) and not weight.is_meta and fn(torch.empty(0)).is_meta:
        module._parameters["weight"] = fn(weight)


def _statistic(name: str, read: Callable[[Any], Any], nested: bool = False) -> property:
    """An attribute of the parameter's state; absent, as for hasattr, where there is none."""

    def get(self: Params4bit) -> Any:
        state = self.quant_state
        if state is None or (nested and state.state2 is None):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return read(state)

    return property(get)


for _name in ("absmax", "code", "offset", "state2"):
    setattr(Params4bit, _name, _statistic(_name, attrgetter(_name)))
for _name, _path in {
    "nested_absmax": "state2.absmax",
    "nested_blocksize": "state2.blocksize",
    "nested_quant_map": "state2.code",
    "nested_dtype": "state2.dtype",
    "nested_offset": "offset",
}.items():
    setattr(Params4bit, _name, _statistic(_name, attrgetter(_path), nested=True))
Params4bit.quant_map = _statistic("quant_map", attrgetter("code"))  # type: ignore[attr-defined]

treat_as_plain(Params4bit)
