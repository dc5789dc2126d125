"""4-bit and 8-bit blockwise quantization under bitsandbytes' names; thin over the ops."""

from __future__ import annotations

from typing import Optional

import torch
from torch._C import DisableTorchFunctionSubclass

from bitsanywhere import ops
from bitsanywhere.checked_weight import CheckedWeight
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.formats import cached_tensor, codebook4, create_dynamic_map
from bitsanywhere.ops.gemm_4bit import NESTED_BLOCKSIZE
from bitsanywhere.ops.registry import is_watched
from bitsanywhere.quant_state import QuantState

name2qmap: dict[str, torch.Tensor] = {}
_maps: dict[torch.device, torch.Tensor] = {}
DEFAULT_BLOCKSIZE_4BIT = 64


def quantize_4bit(
    A: torch.Tensor,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize=None,
    compress_statistics=False,
    quant_type="fp4",
    quant_storage=torch.uint8,
) -> tuple[torch.Tensor, QuantState]:
    """Quantizes to 4 bits in blocks (QLoRA, Dettmers et al. 2023, section 3).

    Args:
        A: float32, float16 or bfloat16, any shape.
        absmax: float32 of shape (blocks,) to receive the statistics.
        out: tensor of the result's shape and dtype to receive the codes.
        blocksize: elements a block, a power of two from 32 to 4096; None means 64.
        compress_statistics: quantize the statistics too, to 8 bits in blocks of 256.
        quant_type: "nf4" or "fp4".
        quant_storage: dtype to store the bytes as.

    Returns:
        The codes, shape (bytes / itemsize, 1), two a byte, and their state.

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    blocksize = DEFAULT_BLOCKSIZE_4BIT if blocksize is None else blocksize
    packed, scales = ops.quantize_4bit(A, blocksize, quant_type, quant_storage)
    packed, scales = into(packed, out, "out"), into(scales, absmax, "absmax")
    offset = state2 = None
    if compress_statistics:
        code = _default_map(A.device)
        scales, outer, offset = ops.nest_absmax(scales, code)
        # Each state has a map of its own: whoever writes to one changes no other.
        state2 = QuantState(outer, None, code.clone(), NESTED_BLOCKSIZE, dtype=torch.float32)
    state = QuantState(
        absmax=scales,
        shape=A.shape,
        code=_codebook(quant_type, A.device),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=A.dtype,
        offset=offset,
        state2=state2,
    )
    return packed, state


def dequantize_4bit(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: Optional[int] = None,
    quant_type="fp4",
) -> torch.Tensor:
    """Restores what `quantize_4bit` made.

    Args:
        A: codes; a transposed view of shape (1, bytes) gives the transposed result.
        quant_state: their state. Without it ``absmax`` and ``out`` are needed.
        absmax: float32 of shape (blocks,), where there is no state.
        out: receives the result; its shape and dtype stand for the state's.
        blocksize: elements a block, where there is no state; None means 64.
        quant_type: "nf4" or "fp4", where there is no state.

    Returns:
        A tensor of the state's shape and dtype.
    """
    if quant_state is None:
        if absmax is None or out is None:
            raise InvalidArgumentError(
                "dequantize_4bit: quant_state is None", "Then absmax and out must be given."
            )
        blocksize = DEFAULT_BLOCKSIZE_4BIT if blocksize is None else blocksize
        result = ops.dequantize_4bit(A, absmax, blocksize, quant_type, out.shape, out.dtype)
    else:
        quant_state.require_4bit("dequantize_4bit")
        result = quant_state.dequantize(A, quant_state.dtype)
    result = into(result, out, "out")
    transposed = A.dim() == 2 and A.shape[0] == 1 and A.shape[1] > 1 and result.dim() == 2
    return result.t() if transposed else result


def quantize_fp4(
    A: torch.Tensor,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize=None,
    compress_statistics=False,
    quant_storage=torch.uint8,
):
    """`quantize_4bit` with quant_type "fp4"."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def quantize_nf4(
    A: torch.Tensor,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize=None,
    compress_statistics=False,
    quant_storage=torch.uint8,
):
    """`quantize_4bit` with quant_type "nf4"."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def dequantize_fp4(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: Optional[int] = None,
) -> torch.Tensor:
    """`dequantize_4bit` with quant_type "fp4"."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "fp4")


def dequantize_nf4(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: Optional[int] = None,
) -> torch.Tensor:
    """`dequantize_4bit` with quant_type "nf4"."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "nf4")


def quantize_blockwise(
    A: torch.Tensor,
    code: Optional[torch.Tensor] = None,
    absmax: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize=4096,
    nested=False,
) -> tuple[torch.Tensor, QuantState]:
    """Quantizes to 8 bits in blocks (Dettmers et al. 2022, "8-bit Optimizers", section 2).

    Args:
        A: float32, float16 or bfloat16, any shape.
        code: ascending codebook, float32 of shape (256,); None means the signed dynamic map. One on
            a GPU is not checked, since that would wait for the GPU.
        absmax, out: tensors to receive the statistics and the codes.
        blocksize: elements a block, a power of two from 32 to 4096.
        nested: quantize the statistics too.

    Returns:
        uint8 codes of A's shape, and their state.

    Raises:
        DtypeError, InvalidArgumentError: naming what was given and what is allowed.
    """
    if code is None:
        code = _default_map(A.device).clone()
    else:
        _require_ascending(code)
        code = code.to(A.device, torch.float32)
    codes, scales = ops.quantize_blockwise(A, code, blocksize)
    codes, scales = into(codes, out, "out"), into(scales, absmax, "absmax")
    offset = state2 = None
    if nested:
        offset = scales.mean() if scales.numel() else scales.new_zeros(())
        scales, state2 = quantize_blockwise(scales - offset, blocksize=blocksize)
    state = QuantState(
        absmax=scales, code=code, blocksize=blocksize, dtype=A.dtype, offset=offset, state2=state2
    )
    return codes, state


def dequantize_blockwise(
    A: torch.Tensor,
    quant_state: Optional[QuantState] = None,
    absmax: Optional[torch.Tensor] = None,
    code: Optional[torch.Tensor] = None,
    out: Optional[torch.Tensor] = None,
    blocksize: int = 4096,
    nested=False,
) -> torch.Tensor:
    """Restores what `quantize_blockwise` made.

    Args:
        A: uint8 codes.
        quant_state: their state. Without it ``absmax`` is needed.
        absmax, code, blocksize: what the state would say; the result is then float32.
        out: receives the result.
        nested: kept for its place in the signature; the state says whether it is nested.

    Returns:
        A tensor of A's shape in the state's dtype.
    """
    if quant_state is None and absmax is None:
        raise InvalidArgumentError(
            "dequantize_blockwise: neither quant_state nor absmax is given", "One is needed."
        )
    if quant_state is None:
        dtype = torch.float32 if out is None else out.dtype
        code = _default_map(A.device) if code is None else code.to(A.device, torch.float32)
    else:
        dtype, code, blocksize = quant_state.dtype, quant_state.code, quant_state.blocksize
        absmax = quant_state.unnested_absmax()
    return into(ops.dequantize_blockwise(A, absmax, code, blocksize, dtype), out, "out")


def gemv_4bit(
    A: torch.Tensor,
    B: torch.Tensor,
    out: Optional[torch.Tensor] = None,
    transposed_A=False,
    transposed_B=False,
    state=None,
):
    """A @ W.T for the 4-bit weight B, without autograd.

    Args:
        A: float32, float16 or bfloat16 of shape (..., K).
        B: codes of the weight of shape (N, K).
        out: receives the result of shape (..., N).
        transposed_A, transposed_B: kept for their place in the signature; must be False.
        state: state of B.
    """
    if state is None:
        raise InvalidArgumentError("gemv_4bit: state is None", "Give the state of B.")
    if transposed_A or transposed_B is True:
        raise InvalidArgumentError(
            "gemv_4bit: transposed_A or transposed_B is True", "Only False is supported."
        )
    if is_watched() or type(A) is not torch.Tensor:
        return into(_gemv(A, B, state), out, "out")
    # Without this every attribute of a Params4bit takes a detour through Python.
    with DisableTorchFunctionSubclass():
        known = state.checked_by_gemv
        result = None if known is None else known.multiply(A, B)
        if result is None:
            result = _gemv(A, B, state)
            state.checked_by_gemv = CheckedWeight.by_gemv(B, state)
    return result if out is None else into(result, out, "out")


def _gemv(A: torch.Tensor, B: torch.Tensor, state: QuantState) -> torch.Tensor:
    """`gemv_4bit` with every check."""
    state.require_4bit("gemv_4bit")
    return ops.gemv_4bit(A, B, state.shape, state.unnested_absmax(), state.code, state.blocksize)


def get_4bit_type(typename, device=None, blocksize=64):
    """The codebook of a 4-bit format, float32 of shape (16,), on ``device`` (default: CPU)."""
    return codebook4(typename).tensor("cpu" if device is None else device)


def _codebook(quant_type: str, device: torch.device) -> torch.Tensor:
    """A 4-bit codebook on ``device``, cloned there: copying it from the host would synchronise."""
    if torch._C._len_torch_dispatch_stack() > 0 or torch.compiler.is_compiling():
        return get_4bit_type(quant_type, device)
    return cached_tensor(codebook4(quant_type), device).clone()


def _require_ascending(code: torch.Tensor) -> None:
    """Raises if a codebook on the CPU does not ascend: its codes would not be the nearest ones."""
    if code.device.type != "cpu" or is_watched():
        return
    flat = code.detach().flatten()
    falls = (flat[1:] < flat[:-1]).nonzero()
    if len(falls):
        place = int(falls[0])
        raise InvalidArgumentError(
            f"quantize_blockwise: code[{place}] is {flat[place]:g}, "
            f"code[{place + 1}] is {flat[place + 1]:g}",
            "A codebook must ascend.",
            "Sort it: code.sort().values.",
        )


def _default_map(device: torch.device) -> torch.Tensor:
    """The signed dynamic map on ``device``, made once; `name2qmap` shows it as "dynamic"."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return create_dynamic_map().to(device)
    found = _maps.get(device)
    if found is None:
        found = create_dynamic_map().to(device)
        if type(found) is torch.Tensor:
            _maps[device] = found
            name2qmap.setdefault("dynamic", found)
    return found


def into(result: torch.Tensor, out: torch.Tensor | None, name: str) -> torch.Tensor:
    """``result``, or ``out`` holding it."""
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype or out.device != result.device:
        raise InvalidArgumentError(
            f"{name} is {out.dtype} {tuple(out.shape)} on {out.device}",
            f"The result is {result.dtype} {tuple(result.shape)} on {result.device}.",
        )
    return out.copy_(result)
