"""gemm_4bit on CUDA: launch of what gemm_4bit_config.py chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from bitsanywhere.backends.cuda import dequantize_4bit
from bitsanywhere.backends.cuda.gemm_4bit_config import choose, every_config
from bitsanywhere.backends.cuda.gemm_4bit_kernels import (
    DequantizeConfig,
    GeneralConfig,
    WgmmaConfig,
)
from bitsanywhere.backends.cuda.jit import KernelSource, current_stream, get_kernel
from bitsanywhere.backends.cuda.parameters import DTYPES, codebook
from bitsanywhere.backends.cuda.tensor_map import tensor_map
from bitsanywhere.backends.cuda.workspace import workspace
from bitsanywhere.ops.registry import Kernel
from bitsanywhere.targets import Target

# struct Arguments of gemm_4bit_arguments.cuh; with what gemm_4bit_wgmma.cuh takes besides.
_ARGUMENTS = "<11Q3q2I"
_WGMMA_ARGUMENTS = f"{_ARGUMENTS}56x128s"


def sources(target: Target) -> list[KernelSource]:
    """Every kernel that `run` or gemv_4bit may ask for."""
    found = {config.source(dtype) for dtype in DTYPES for config in every_config(dtype, target)}
    return sorted(found, key=repr)


class Plan(NamedTuple):
    """How activations of one shape and dtype are multiplied with the weights of a `Product`.

    Attributes:
        size, dtype: of the activations.
        nested: the scales are quantized too.
        m: rows.
        result: size of the result.
        launch: the kernel, of a stream and the fields of its arguments; None where the weight is
            dequantized first.
        floats: of workspace.
        stages: of the kernel's pipeline.
        box_rows: rows of activations that the kernel copies at once by a tensor map; 0 if it takes
            none.
    """

    size: torch.Size
    dtype: torch.dtype
    nested: bool = False
    m: int = 0
    result: tuple[int, ...] = ()
    launch: Callable[..., None] | None = None
    floats: int = 0
    stages: int = 0
    box_rows: int = 0


@lru_cache(maxsize=4096)
def _kernel(
    index: int,
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    blocksize: int,
    aligned: bool,
    nested: bool,
    overlap: bool,
) -> tuple[Callable[..., None] | None, int, int, int]:
    """`launch`, `floats`, `stages` and `box_rows` of a `Plan`."""
    target = Target.of(torch.device("cuda", index))
    config = choose(m, n, k, dtype, blocksize, target, aligned, nested)
    if isinstance(config, DequantizeConfig):
        return None, 0, 0, 0
    kernel = get_kernel(config.source(dtype), target, index)
    if isinstance(config, GeneralConfig):
        return kernel.bind(config.grid, config.threads, 0, _ARGUMENTS), 0, 0, 0
    box_rows = config.tile_m if isinstance(config, WgmmaConfig) else 0
    layout = _WGMMA_ARGUMENTS if box_rows else _ARGUMENTS
    shared = config.stages_bytes
    launch = kernel.bind((config.grid,), config.threads, shared, layout, overlap)
    return launch, config.partial_floats, config.stages, box_rows


class Product:
    """gemm_4bit for the weights of one shape and format on one device; see `Op.bind`.

    Args:
        index: of the device.
        shape: (N, K) of the weights.
        blocksize: elements a block.
        code: the codebook, 16 floats by code, contiguous.
        overlap: let kernels begin before the one ahead has ended, which then must not be the one
            that writes the code.
    """

    def __init__(
        self,
        index: int,
        shape: Sequence[int],
        blocksize: int,
        code: torch.Tensor,
        overlap: bool = True,
    ) -> None:
        self._index, self._blocksize, self._code = index, blocksize, code
        self._overlap = overlap
        self._n, self._k = shape
        self._constants = self._n, self._k, blocksize.bit_length() - 1
        # Calls with as many rows as the one before find their plan here.
        self._last = Plan(torch.Size(), torch.float32)

    def __call__(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        bias: torch.Tensor | None,
        absmax: torch.Tensor,
        absmax_8bit: torch.Tensor | None = None,
        absmax_code: torch.Tensor | None = None,
        absmax_offset: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """A @ dequantize(B).T + bias, of A's dtype and shape (..., N); None if A or bias is wrong.

        Args:
            out: contiguous, of that dtype and shape; None for a new tensor.
        """
        weights, size, plan = B.data_ptr(), A.shape, self._last
        is_nested = absmax_8bit is not None
        if weights % 16:
            plan = self._plan(size, A.dtype, is_nested, aligned=False)
        elif size != plan.size or A.dtype is not plan.dtype or is_nested is not plan.nested:
            plan = self._plan(size, A.dtype, is_nested, aligned=True)
            self._last = plan or self._last
        if plan is None:
            return None
        if A.get_device() != self._index:
            return None
        addend = 0
        if bias is not None:
            if bias.dtype is not plan.dtype or bias.numel() != self._n or not bias.is_contiguous():
                return None
            if bias.get_device() != self._index:
                return None
            addend = bias.data_ptr()
        activations = A.data_ptr()
        if activations % 16 or not A.is_contiguous():
            A = A.clone(memory_format=torch.contiguous_format)
            activations = A.data_ptr()
        result = A.new_empty(*plan.result) if out is None else out
        nested = None
        codes = scale_codes = offset = partial = arrivals = 0
        if absmax_8bit is not None and absmax_code is not None and absmax_offset is not None:
            nested = absmax_8bit, absmax_code, absmax_offset
            codes, scale_codes = absmax_8bit.data_ptr(), absmax_code.data_ptr()
            offset = absmax_offset.data_ptr()
        if plan.launch is None:
            return self._multiply_dense(A, B, absmax, bias, nested, result)
        maps = ()
        if plan.box_rows:
            if result.data_ptr() % 4:
                # The kernel stores results in pairs.
                whole = self(A, B, bias, absmax, absmax_8bit, absmax_code, absmax_offset)
                return whole if whole is None else result.copy_(whole)
            width = 2 * self._k
            maps = (tensor_map(activations, plan.m, width, width, plan.box_rows),)
        stream = current_stream(self._index)
        if plan.floats:
            partial, arrivals = workspace(self._index, stream, plan.floats).addresses
        plan.launch(
            stream, activations, weights, absmax.data_ptr(), codes, scale_codes, offset,
            self._code.data_ptr(), addend, result.data_ptr(), partial, arrivals, plan.m,
            *self._constants, plan.stages, *maps,
        )  # fmt: skip
        return result

    def _plan(
        self, size: torch.Size, dtype: torch.dtype, nested: bool, aligned: bool
    ) -> Plan | None:
        """The plan for activations, None if there is none."""
        if not size or size[-1] != self._k or dtype not in DTYPES:
            return None
        m, result = size[:-1].numel(), (*size[:-1], self._n)
        if m == 0 or self._n == 0:
            return Plan(size, dtype, nested, m, result)
        shape = m, self._n, self._k
        launch = _kernel(
            self._index, *shape, dtype, self._blocksize, aligned, nested, self._overlap
        )
        return Plan(size, dtype, nested, m, result, *launch)

    def _multiply_dense(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        absmax: torch.Tensor,
        bias: torch.Tensor | None,
        nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """The weight dequantized to a tensor that lives only here, then torch's own product."""
        if out.numel() == 0:
            return out
        weight = dequantize_4bit.decode(
            B, absmax, self._blocksize, self._code, (self._n, self._k), A.dtype, nested=nested
        )
        rows, result = A.detach().view(-1, self._k), out.view(-1, self._n)
        if bias is None:
            torch.mm(rows, weight.t(), out=result)
        else:
            torch.addmm(bias.detach(), rows, weight.t(), out=result)
        return out


@lru_cache(maxsize=4096)
def bind(device: torch.device, shape: tuple[int, ...], blocksize: int, quant_type: str) -> Product:
    """The op for weights of one shape."""
    return Product(device.index, shape, blocksize, codebook(quant_type, device))


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
    """A @ dequantize(B).T + bias; `nested`: absmax_8bit, absmax_code, absmax_offset, or nothing."""
    product = bind(A.device, tuple(shapeB), blocksize, quant_type)
    addend, *statistics = (x if x is None else x.contiguous() for x in (bias, *nested))
    result = product(A, B.contiguous(), addend, absmax.contiguous(), *statistics)
    assert result is not None, "arguments that were checked fit"
    return result


def why_not(*args: object) -> str | None:
    """Every checked call is served."""
    return None


KERNEL = Kernel(run=run, why_not=why_not, bind=bind)
