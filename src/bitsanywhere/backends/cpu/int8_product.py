"""Products with int8 weights on CPUs, for the ops from int8_linear_matmul to int8_linear.

Two ways, see `in_rows`: a few rows of activations by our kernel, more of them by torch's int8
product, which first brings the weight into an order of its own; in float64 where that is wrong.
"""

from __future__ import annotations

import logging
from functools import cache, lru_cache

import torch

from bitsanywhere.backends.cpu.common import NAMES
from bitsanywhere.backends.cpu.compiler import kernel
from bitsanywhere.backends.cpu.int8_vectorwise_quant import rows_a_task
from bitsanywhere.backends.cpu.machine import Machine, host
from bitsanywhere.backends.cpu.memory import fresh
from bitsanywhere.backends.cpu.parallel import launch, threads

logger = logging.getLogger("bitsanywhere")

# Up to this many rows our kernel is faster than torch; five at a time fill the registers.
_MOST_ROWS, _MOST_HEIGHT = 192, 5
_VECTOR_BYTES, _WEIGHT_ROWS, _ROW_TASKS = 64, 4, 8
# So many bytes are not worth a second thread.
_SMALL = 1 << 15
# Elements of a weight that are float64 at a time.
_CONVERTED = 1 << 22


def in_rows(m: int) -> bool:
    """Whether our kernel takes a product of m rows of activations on this processor."""
    return m <= _MOST_ROWS and has_dot_products(host())


@lru_cache(maxsize=8)
def has_dot_products(machine: Machine) -> bool:
    """Whether the processor has those of bytes that our kernel is written with."""
    return machine.level.startswith("avx512") and "+avx512vnni" in machine.features.split(",")


def matmul(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """A @ B.T in int32, for int8 of shapes (..., K) and (N, K)."""
    n, k = B.shape
    m = A.shape[:-1].numel()
    result = fresh((*A.shape[:-1], n), torch.int32) if out is None else out
    if result.numel() == 0:
        return result
    if k == 0:
        return result.zero_()
    if in_rows(m):
        _by_rows(A.reshape(m, k), B, None, None, None, None, None, result)
    elif _torch_is_exact():
        torch._int_mm(A.reshape(m, k).contiguous(), B.t(), out=result.view(m, n))
    else:
        _by_doubles(A.reshape(m, k), B, result.view(m, n))
    return result


@cache
def _torch_is_exact() -> bool:
    """Whether torch's int8 product is right on this processor.

    That of torch 2.5 overflows on x86 processors without AVX512-VNNI (pytorch issue 136746).
    """
    numbers = torch.arange(64 * 96, device="cpu")
    a, b = ((numbers * step % 255 - 127).to(torch.int8).view(64, 96) for step in (37, 101))
    if torch.equal(torch._int_mm(a, b.t()).double(), a.double() @ b.double().t()):
        return True
    logger.warning(
        "torch %s multiplies int8 matrices wrongly on this processor (pytorch issue 136746); "
        "float64 products, which are slower, take their place. torch 2.6 or later is right.",
        torch.__version__,
    )
    return False


def _by_doubles(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a @ b.T, for int8 of shapes (M, K) and (N, K); float64 holds all such sums exactly."""
    a, rows = a.double(), max(1, _CONVERTED // b.shape[1])
    for start in range(0, len(b), rows):
        out[:, start : start + rows] = a @ b[start : start + rows].double().t()


def scaled(
    A: torch.Tensor,
    B: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    columns: torch.Tensor | None = None,
    outliers: torch.Tensor | None = None,
) -> torch.Tensor:
    """The scaled product plus that of outliers plus bias, rounded once to `dtype`.

    Args:
        A, B: int8 of shapes (..., K) and (N, K).
        row_stats, col_stats: their float32 statistics.
        bias: float (N,), or None.
        columns: int64 numbers of outlier columns, or None.
        outliers: float activations there, (rows, columns).
    """
    n, k = B.shape
    m = A.shape[:-1].numel()
    if m and n and k and in_rows(m):
        out = fresh((*A.shape[:-1], n), dtype)
        _by_rows(A.reshape(m, k), B, row_stats, col_stats, bias, columns, outliers, out)
        return out
    extra = None
    if columns is not None and outliers is not None and columns.numel():
        # Under autocast the product would not be float32.
        with torch.autocast("cpu", enabled=False):
            extra = outliers.float() @ B.index_select(1, columns).float().t()
    return dequantize(matmul(A, B), row_stats, col_stats, bias, dtype, extra)


def dequantize(
    product: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    extra: torch.Tensor | None = None,
) -> torch.Tensor:
    """The int32 product scaled, plus ``extra * col_stats / 127``, plus bias.

    Args:
        extra: float32 of the product's size, or None.
    """
    product = product.contiguous()
    out = fresh(product.shape, dtype)
    if out.numel() == 0:
        return out
    m, n = out.shape[:-1].numel(), out.shape[-1]
    batch = rows_a_task(n)
    row_stats, col_stats, bias = row_stats.contiguous(), col_stats.contiguous(), _float(bias)
    launch(
        kernel("int8_mm_dequant", dtype=NAMES[dtype]), -(-m // batch),
        product.data_ptr(), m, n, row_stats.data_ptr(), col_stats.data_ptr(), _address(bias),
        _address(extra), out.data_ptr(), batch,
    )  # fmt: skip
    return out


def _by_rows(
    a: torch.Tensor,
    b: torch.Tensor,
    row_stats: torch.Tensor | None,
    col_stats: torch.Tensor | None,
    bias: torch.Tensor | None,
    columns: torch.Tensor | None,
    outliers: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    (m, k), n, a, b = a.shape, len(b), a.contiguous(), b.contiguous()
    height = min(m + 1, _MOST_HEIGHT)
    stride = -(-k // _VECTOR_BYTES) * _VECTOR_BYTES
    rows = -(-(m + 1) // height) * height
    shifted = torch.empty(rows * stride, dtype=torch.uint8, device="cpu")
    tasks = rows if rows * stride > _SMALL else 1
    launch(
        kernel("int8_shift"), tasks,
        a.data_ptr(), m, k, shifted.data_ptr(), stride, rows,
    )  # fmt: skip
    batch = max(n // (threads() * _ROW_TASKS), (1 << 15) // k, 1)
    batch = -(-batch // _WEIGHT_ROWS) * _WEIGHT_ROWS
    if row_stats is not None and col_stats is not None:
        row_stats, col_stats = row_stats.contiguous(), col_stats.contiguous()
    count, values, scratch, room = 0, None, None, 0
    if columns is not None and outliers is not None and columns.numel():
        columns, count = columns.contiguous(), columns.numel()
        values = torch.nn.functional.pad(outliers.float(), (0, -count % 16)).contiguous()
        room = values.shape[1] * 4 * _WEIGHT_ROWS
        scratch = torch.empty(room * threads(), dtype=torch.uint8, device="cpu")
    bias, name = _float(bias), "int32" if out.dtype == torch.int32 else NAMES[out.dtype]
    launch(
        kernel("int8_rows", dtype=name, height=height), -(-n // batch),
        0, shifted.data_ptr(), stride, b.data_ptr(), k, n, _address(row_stats),
        _address(col_stats), _address(bias), out.data_ptr(), m, batch, _address(columns), count,
        _address(values), _address(scratch), room,
    )  # fmt: skip


def _float(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
