"""gemm_4bit on CUDA: launch of what gemm_4bit_config.py chooses."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda import dequantize_4bit
from bitsanywhere.backends.cuda.gemm_4bit_config import choose, every_config
from bitsanywhere.backends.cuda.gemm_4bit_kernels import (
    DequantizeConfig,
    GeneralConfig,
    WgmmaConfig,
)
from bitsanywhere.backends.cuda.jit import (
    Bound,
    KernelSource,
    compile_ahead,
    current_stream,
    get_kernel,
)
from bitsanywhere.backends.cuda.parameters import DTYPES, codebook, new_tensor
from bitsanywhere.backends.cuda.tensor_map import tensor_map
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.formats import BLOCKSIZES_4BIT
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# struct Arguments of gemm_4bit_arguments.cuh, its numbers together, and no tensor map; with the one
# that gemm_4bit_wgmma.cuh takes.
_NUMBERS = struct.Struct("<3q2I")
_ARGUMENTS = f"<11Q{_NUMBERS.size}s0s"
_WGMMA_ARGUMENTS = f"<11Q{_NUMBERS.size}s56x128s"
Nested = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` or gemv_4bit may ask for."""
    found = {config.source(dtype) for dtype in DTYPES for config in every_config(dtype, target)}
    return sorted(found, key=repr)


class Plan(NamedTuple):
    """How activations of one shape and dtype are multiplied with the weights of a `Product`.

    Attributes:
        size, dtype: of the activations.
        m: rows.
        result, strides: size of the result, contiguous.
        kernel: None where the weight is dequantized first.
        numbers: the last fields of the kernel's arguments.
        floats: of workspace.
        box_rows: rows of activations that the kernel copies at once by a tensor map; 0 if it takes
            none.
    """

    size: torch.Size
    dtype: torch.dtype
    m: int = 0
    result: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    kernel: Bound | None = None
    numbers: bytes = b""
    floats: int = 0
    box_rows: int = 0


@lru_cache(maxsize=4096)
def _plan(
    index: int,
    size: torch.Size,
    n: int,
    dtype: torch.dtype,
    blocksize: int,
    aligned: bool,
    nested: bool,
    overlap: bool,
) -> Plan:
    """The plan for activations of a size, `n` weight rows, and what else the choice depends on."""
    m, k, result = size[:-1].numel(), size[-1], (*size[:-1], n)
    strides = tuple(math.prod(result[i + 1 :]) for i in range(len(result)))
    plan = Plan(size, dtype, m, result, strides)
    if m == 0 or n == 0:
        return plan
    target = Target.of(torch.device("cuda", index))
    config = choose(m, n, k, dtype, blocksize, target, aligned, nested)
    if isinstance(config, DequantizeConfig):
        return plan
    kernel = get_kernel(config.source(dtype), target, index)
    sizes = m, n, k, blocksize.bit_length() - 1
    if isinstance(config, GeneralConfig):
        bound = kernel.bind(config.grid, config.threads, 0, _ARGUMENTS)
        return plan._replace(kernel=bound, numbers=_NUMBERS.pack(*sizes, 0))
    box_rows = config.tile_m if isinstance(config, WgmmaConfig) else 0
    layout = _WGMMA_ARGUMENTS if box_rows else _ARGUMENTS
    shared = config.stages_bytes
    bound = kernel.bind((config.grid,), config.threads, shared, layout, overlap)
    numbers = _NUMBERS.pack(*sizes, config.stages)
    return plan._replace(
        kernel=bound, numbers=numbers, floats=config.partial_floats, box_rows=box_rows
    )


class Product:
    """gemm_4bit for one weight, as long as its tensors stay where they are; see `Op.bind`.

    Args:
        index: of the device.
        B: the codes, contiguous.
        shape: (N, K) of the weight.
        absmax: contiguous.
        nested: (absmax_8bit, absmax_code, absmax_offset) as gemm_4bit takes them, each contiguous,
            or None.
        blocksize: elements a block.
        code: the codebook, 16 floats by code, contiguous.
        overlap: let kernels begin before the one ahead has ended, which then must not be the one
            that writes the code.
    """

    __slots__ = (
        "_absmax", "_code", "_codebook", "_fixed", "_index", "_last", "_nested", "_numel",
        "_shape", "_weights",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        B: torch.Tensor,
        shape: Sequence[int],
        absmax: torch.Tensor,
        nested: Nested | None,
        blocksize: int,
        code: torch.Tensor,
        overlap: bool = True,
    ) -> None:
        self._index, self._absmax, self._nested = index, absmax, nested
        self._code, self._codebook = code, code.data_ptr()
        self._weights, self._numel = B.data_ptr(), B.numel()
        n, k = shape
        self._shape = n, k
        self._fixed = blocksize, self._weights % 16 == 0, nested is not None, overlap
        # Calls with as many rows as the one before find their plan here.
        self._last = Plan(torch.Size(), torch.float32)

    def __call__(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        bias: torch.Tensor | None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """A @ dequantize(B).T + bias, of A's dtype and shape (..., N).

        Returns None if A or bias is wrong or B is not as it was.

        Args:
            out: contiguous, of that dtype and shape; None for a new tensor.
        """
        n, k = self._shape
        size, dtype, m, result_size, strides, kernel, numbers, floats, box_rows = self._last
        if A.shape != size or A.dtype is not dtype:
            size, dtype = A.shape, A.dtype
            if not size or size[-1] != k or dtype not in DTYPES:
                return None
            # Another thread may set it meanwhile.
            self._last = plan = _plan(self._index, size, n, dtype, *self._fixed)
            _, _, m, result_size, strides, kernel, numbers, floats, box_rows = plan
        index, weights = self._index, B.data_ptr()
        if A.get_device() != index or weights != self._weights:
            return None
        if B.numel() != self._numel or not B.is_contiguous():
            return None
        addend = 0
        if bias is not None:
            if bias.dtype is not dtype or bias.numel() != n:
                return None
            if bias.get_device() != index or not bias.is_contiguous():
                return None
            addend = bias.data_ptr()
        activations = A.data_ptr()
        if activations % 16 or not A.is_contiguous():
            A = A.clone(memory_format=torch.contiguous_format)
            activations = A.data_ptr()
        if out is None:
            result = new_tensor(A, result_size, strides, dtype, index)
        else:
            result = out
        if kernel is None:
            return self._multiply_dense(A, B, bias, result)
        pointer = result.data_ptr()
        box = b""
        if box_rows:
            if pointer % 4:
                # The kernel stores results in pairs.
                whole = self(A, B, bias)
                return whole if whole is None else result.copy_(whole)
            width = 2 * k
            box = tensor_map(activations, m, width, width, box_rows)
        nested = self._nested
        codes = scale_codes = offset = partial = arrivals = 0
        if nested is not None:
            absmax_8bit, absmax_code, absmax_offset = nested
            codes, scale_codes = absmax_8bit.data_ptr(), absmax_code.data_ptr()
            offset = absmax_offset.data_ptr()
        stream = current_stream(index)
        if floats:
            partial, arrivals = workspace(index, stream, floats).addresses
        pack, launch = kernel
        packed = pack(
            activations, weights, self._absmax.data_ptr(), codes, scale_codes, offset,
            self._codebook, addend, pointer, partial, arrivals, numbers, box,
        )  # fmt: skip
        launch(stream, packed)
        return result

    def _multiply_dense(
        self, A: torch.Tensor, B: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
    ) -> torch.Tensor:
        """The weight dequantized to a tensor that lives only here, then torch's own product."""
        if out.numel() == 0:
            return out
        n, k = self._shape
        weight = dequantize_4bit.decode(
            B, self._absmax, self._fixed[0], self._code, (n, k), A.dtype, nested=self._nested
        )
        rows, result = A.detach().view(-1, k), out.view(-1, n)
        if bias is None:
            torch.mm(rows, weight.t(), out=result)
        else:
            torch.addmm(bias.detach(), rows, weight.t(), out=result)
        return out


def bind(
    device: torch.device,
    B: torch.Tensor,
    shape: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    *nested: torch.Tensor | None,
) -> Callable[..., torch.Tensor | None]:
    """`Product` for one weight; `nested`: absmax_8bit, absmax_code, absmax_offset, or nothing."""
    code = codebook(quant_type, device)
    product = Product(device.index, B, shape, absmax, all_or_none(nested), blocksize, code)
    # Python calls a method faster than an object.
    return product.__call__


def all_or_none(nested: Sequence[torch.Tensor | None]) -> Nested | None:
    """absmax_8bit, absmax_code, absmax_offset, or None if they are not given."""
    codes, scale_code, offset = nested or (None, None, None)
    if codes is None or scale_code is None or offset is None:
        return None
    return codes, scale_code, offset


def run(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    *nested: torch.Tensor | None,
) -> torch.Tensor:
    """A @ dequantize(B).T + bias; `nested`: as in `bind`."""
    B, absmax = B.contiguous(), absmax.contiguous()
    addend, *statistics = (x if x is None else x.contiguous() for x in (bias, *nested))
    product = bind(A.device, B, shapeB, absmax, blocksize, quant_type, *statistics)
    result = product(A, B, addend)
    assert result is not None, "arguments that were checked fit"
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


def expect(
    device: torch.device, shape: tuple[int, ...], blocksize: int, nested: bool, dtype: torch.dtype
) -> None:
    """Compiles the kernel for one row of `dtype` and such a weight, in the background."""
    if dtype in DTYPES and blocksize in BLOCKSIZES_4BIT and 0 not in shape:
        _expect(device, *shape, blocksize, nested, dtype)


@cache
def _expect(
    device: torch.device, n: int, k: int, blocksize: int, nested: bool, dtype: torch.dtype
) -> None:
    target = Target.of(device)
    config = choose(1, n, k, dtype, blocksize, target, True, nested)
    if not isinstance(config, DequantizeConfig):
        compile_ahead([config.source(dtype)], device.index)


KERNEL = Kernel(run=run, why_not=why_not, bind=bind, expect=expect)
