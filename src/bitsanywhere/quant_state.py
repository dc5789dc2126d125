"""QuantState: the statistics of a quantized tensor, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import torch

from bitsanywhere import checkpoint, ops
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE

_FIELDS = ("absmax", "shape", "code", "blocksize", "quant_type", "dtype", "offset", "state2")


class QuantState:
    """What it takes, beside the codes, to restore a quantized tensor.

    Attributes:
        absmax: scale of each block, float32 of shape (blocks,); uint8 codes if nested.
        shape: shape of the original tensor.
        dtype: dtype of the original tensor, and of what dequantization returns.
        blocksize: elements a block.
        quant_type: "nf4" or "fp4"; None for 8-bit blockwise quantization.
        code: codebook, float32 of shape (16,) or (256,).
        offset: mean that was taken off ``absmax`` before it was quantized; float32 scalar tensor.
        state2: state of the quantized ``absmax``, if nested.
        nested: whether ``absmax`` is itself quantized.
    """

    valid_quant_types = ("fp4", "nf4")
    valid_qs_type_keys = tuple(f"bitsandbytes__{name}" for name in valid_quant_types)
    absmax: torch.Tensor
    shape: Any
    code: Any
    dtype: Any
    blocksize: Any
    quant_type: Any
    offset: Any
    state2: Any
    checked: Any
    checked_by_gemv: Any

    def __init__(
        self,
        absmax,
        shape=None,
        code=None,
        blocksize=None,
        quant_type=None,
        dtype=None,
        offset=None,
        state2=None,
    ):
        self.absmax = absmax
        self.shape = shape
        self.code = code
        self.dtype = dtype
        self.blocksize = blocksize
        self.quant_type = quant_type
        self.offset = offset
        self.state2 = state2
        self.nested = state2 is not None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("checked", "checked_by_gemv"):
            # What gemm_4bit and gemv_4bit know of a weight with this state: see CheckedWeight.
            object.__setattr__(self, "checked", None)
            object.__setattr__(self, "checked_by_gemv", None)
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("bitsandbytes__"):
            packed = self.as_dict(packed=True)
            key = f"quant_state.{name}"
            if key in packed:
                return packed[key]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, index: int) -> Any:
        """Position in the list that early versions of the format used."""
        nested = [self.offset, self.state2] if self.nested else None
        fields = [self.absmax, self.shape, self.dtype, self.blocksize, nested, self.quant_type]
        return fields[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantState):
            return NotImplemented
        return (
            same_tensor(self.absmax, other.absmax)
            and same_tensor(self.code, other.code)
            and same_tensor(self.offset, other.offset)
            and self.shape == other.shape
            and self.dtype == other.dtype
            and self.blocksize == other.blocksize
            and self.quant_type == other.quant_type
            and self.state2 == other.state2
        )

    @classmethod
    def from_dict(cls, qs_dict: dict[str, Any], device: torch.device) -> QuantState:
        """The state whose `as_dict` was ``qs_dict``, packed or not, with tensors on ``device``.

        Keys may carry a prefix such as ``"weight."``. The dictionary is not changed.

        Raises:
            CheckpointError: if anything is missing, inconsistent or out of bounds.
        """
        fields = checkpoint.read_quant_state(qs_dict)
        nested = fields.nested
        state2 = None
        offset = None
        if nested is not None:
            offset = torch.tensor(nested.offset, dtype=torch.float32, device=device)
            state2 = cls(
                absmax=nested.absmax.to(device),
                code=nested.code.to(device),
                blocksize=nested.blocksize,
                dtype=nested.dtype,
            )
        return cls(
            absmax=fields.absmax.to(device),
            shape=torch.Size(fields.shape),
            code=fields.code.to(device),
            blocksize=fields.blocksize,
            quant_type=fields.quant_type,
            dtype=fields.dtype,
            offset=offset,
            state2=state2,
        )

    def as_dict(self, packed: bool = False) -> dict[str, Any]:
        """Everything in a flat dictionary.

        Args:
            packed: tensors only, for a state_dict: what is no tensor goes into one uint8 tensor
                of JSON under ``quant_state.bitsandbytes__<quant_type>``.
        """
        return checkpoint.write_quant_state(self, packed)

    def to(self, device) -> None:
        """Moves all tensors to ``device``, in place."""
        self.code = self.code.to(device)
        self.absmax = self.absmax.to(device)
        if self.state2 is not None:
            self.offset = self.offset.to(device)
            self.state2.to(device)

    def unnested_absmax(self) -> torch.Tensor:
        """The float32 scale of each block, dequantized if it is nested."""
        if self.state2 is None:
            return self.absmax
        outer = self.state2
        scales = ops.dequantize_blockwise(
            self.absmax, outer.absmax, outer.code, outer.blocksize, torch.float32
        )
        return scales.add_(self.offset)

    def gemm_statistics(self) -> tuple[Any, Any, Any, Any]:
        """(absmax, absmax_8bit, absmax_code, absmax_offset) as the gemm_4bit op takes them."""
        outer = self.state2
        if outer is None:
            return self.absmax, None, None, None
        if outer.blocksize != NESTED_BLOCKSIZE:
            return self.unnested_absmax(), None, None, None
        return outer.absmax, self.absmax, outer.code, self.offset

    def dequantize(
        self, codes: torch.Tensor, dtype: torch.dtype, checked: bool = False
    ) -> torch.Tensor:
        """What 4-bit codes stand for: a tensor of the state's shape.

        Args:
            codes: as `quantize_4bit` returned them.
            dtype: float32, float16 or bfloat16.
            checked: codes and statistics were checked before, and no tracer watches.
        """
        absmax, *nested = self.gemm_statistics()
        fixed = (self.blocksize, self.quant_type, self.shape, dtype)
        if nested[0] is None:
            op = ops.dequantize_4bit
            arguments = (codes, absmax, *fixed)
        else:
            op = ops.dequantize_4bit_nested
            arguments = (codes, absmax, *nested, *fixed)
        return op.trusted(*arguments) if checked else op(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantState:
        return type(self)(*(copy.deepcopy(getattr(self, name), memo) for name in _FIELDS))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in _FIELDS)

    def require_4bit(self, caller: str) -> None:
        """Raises unless this is the state of a 4-bit quantized tensor."""
        if self.quant_type not in self.valid_quant_types:
            raise InvalidArgumentError(
                f"{caller}: quant_state has quant_type {self.quant_type!r}",
                "It must come from quantize_4bit ('nf4' or 'fp4').",
            )


def same_tensor(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Whether both are None, or equal in dtype, shape and every value."""
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first, second)
