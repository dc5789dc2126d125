"""gemm_4bit and gemv_4bit on the CPU backend, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from bitsanywhere.backends.cpu import (
    dequantize_4bit,
    gemm_4bit,
    gemv_4bit,
    matmul,
    quantize_4bit,
    quantize_blockwise,
)
from bitsanywhere.backends.cpu.machine import host
from bitsanywhere.formats import FORMATS4, create_dynamic_map
from bitsanywhere.ops.gemm_4bit import gemm_4bit_torch, unnest_torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """A weight of shape (n, k) quantized in blocks."""

    n: int
    k: int
    blocksize: int
    quant_type: str = "nf4"
    nested: bool = False


# K a multiple of 128 and not, one block a row, blocks that span rows, odd K, odd N.
CASES = (
    Case(10, 128, 64),
    Case(7, 64, 64, "fp4"),
    Case(101, 576, 64, nested=True),
    Case(13, 1600, 64),
    Case(9, 160, 32, nested=True),
    Case(8, 96, 32),
    Case(64, 4224, 128, "fp4", nested=True),
    Case(6, 512, 512),
    Case(3, 4096, 4096),
    Case(5, 100, 64, nested=True),
    Case(33, 48, 64),
    Case(11, 7, 32),
    Case(1, 1, 64),
)


def quantized(case: Case) -> tuple[list, dict]:
    """Arguments of gemm_4bit after A: positional ones, and the nested statistics."""
    weight = torch.randn(case.n, case.k, generator=torch.Generator().manual_seed(case.k)) * 0.02
    packed, absmax = quantize_4bit.run(weight, case.blocksize, case.quant_type, torch.uint8)
    nested = {}
    if case.nested:
        offset, code = absmax.mean(), create_dynamic_map()
        codes, absmax = quantize_blockwise.run(absmax - offset, code, 256)
        nested = {"absmax_8bit": codes, "absmax_code": code, "absmax_offset": offset}
    return [packed, [case.n, case.k], absmax, case.blocksize, case.quant_type], nested


def dense(args: list, nested: dict, dtype: torch.dtype) -> torch.Tensor:
    """The weight, dequantized to `dtype`."""
    packed, shape, absmax, blocksize, quant_type = args
    scales = unnest_torch(absmax, *(nested.get(f"absmax_{x}") for x in ("8bit", "code", "offset")))
    return dequantize_4bit.run(packed, scales, blocksize, quant_type, shape, dtype)


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Root of the mean square error, relative to that of the activations' and weights' products."""
    return ((got.double() - exact).norm() / exact.norm()).item()


def check(case: Case, m: int, dtype: torch.dtype, with_bias: bool) -> None:
    args, nested = quantized(case)
    x = torch.randn(m, case.k, generator=torch.Generator().manual_seed(m)).to(dtype)
    bias = torch.randn(case.n).to(dtype) if with_bias else None
    got = gemm_4bit.run(x, *args, bias=bias, **nested)
    assert got.shape == (m, case.n)
    assert got.dtype == dtype
    weight = dense(args, nested, torch.float32).double()
    exact = x.double() @ weight.T + (0 if bias is None else bias.double())
    # As exact as rounding the weights to dtype, multiplying exactly, and rounding once.
    rounded = x.double() @ dense(args, nested, dtype).double().T
    rounded = rounded + (0 if bias is None else bias.double())
    size = (x.double().norm() * weight.norm() / exact.norm()).item()
    assert error(got, exact) <= 1.02 * error(rounded.to(dtype), exact) + 1e-6 * max(1.0, size)


@pytest.mark.parametrize("m", [1, 2, 5, 19])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_exact_as_the_reference(case, dtype, m):
    check(case, m, dtype, with_bias=m % 2 == 1)


def test_more_rows_than_one_pass_takes():
    check(Case(50, 256, 64), 2 * matmul._TILE_ROWS + 3, torch.bfloat16, with_bias=True)
    check(Case(50, 256, 64), matmul._TILE_ROWS + 1, torch.float32, with_bias=False)


@pytest.mark.parametrize("case", [CASES[2], CASES[4], CASES[3]], ids=str)
@pytest.mark.parametrize("m", [1, 7, 40])
def test_every_level(level, case, m):
    check(case, m, torch.bfloat16, with_bias=True)


def test_dense_in_slices(monkeypatch):
    monkeypatch.setattr(matmul, "_DENSE_BYTES", 2000)
    for dtype in DTYPES:
        for with_bias in (True, False):
            check(Case(133, 100, 64, nested=True), 5, dtype, with_bias)


def test_weights_in_other_storage_dtypes():
    args, _ = quantized(Case(10, 128, 64))
    x = torch.randn(3, 128)
    want = gemm_4bit.run(x, *args)
    for storage in (torch.bfloat16, torch.float32, torch.int8):
        assert torch.equal(gemm_4bit.run(x, args[0].view(-1).view(storage), *args[1:]), want)


def test_leading_dimensions_and_strides():
    args, _ = quantized(Case(10, 128, 64))
    x = torch.randn(128, 2, 3).permute(1, 2, 0)
    got = gemm_4bit.run(x, *args)
    assert got.shape == (2, 3, 10)
    assert torch.equal(got, gemm_4bit.run(x.reshape(6, 128), *args).view(2, 3, 10))
    one = gemm_4bit.run(x[0, 0], *args)
    assert one.shape == (10,)
    torch.testing.assert_close(one, got[0, 0], rtol=1e-5, atol=1e-6)


def test_empty_shapes():
    args, _ = quantized(Case(10, 128, 64))
    assert gemm_4bit.run(torch.randn(0, 128), *args).shape == (0, 10)
    nothing = [torch.empty(0, 1, dtype=torch.uint8), [4, 0], torch.empty(0), 64, "nf4"]
    assert torch.equal(gemm_4bit.run(torch.randn(3, 0), *nothing), torch.zeros(3, 4))
    bias = torch.arange(4.0)
    assert torch.equal(gemm_4bit.run(torch.randn(3, 0), *nothing, bias), bias.expand(3, 4))


def test_gemv_with_any_codebook():
    code = torch.randn(16, generator=torch.Generator().manual_seed(1))
    args, _ = quantized(Case(10, 128, 64))
    packed, shape, absmax, blocksize, _ = args
    codes = torch.stack((packed.view(-1) >> 4, packed.view(-1) & 15), 1).view(-1).int()
    weight = (code[codes].view(-1, 64) * absmax[:, None]).view(10, 128).double()
    for rows in (1, 4):
        x, out = torch.randn(rows, 128), torch.full((rows, 10), float("nan"))
        assert gemv_4bit.run(x, packed, shape, absmax, code, blocksize, out=out) is out
        assert error(out, x.double() @ weight.T) < 1e-6


@pytest.mark.parametrize("place", ["activation", "scale"])
@pytest.mark.parametrize("m", [1, 5])
def test_nan_stays_where_it_belongs(place, m):
    args, _ = quantized(Case(10, 192, 64))
    x = torch.randn(m, 192).bfloat16()
    want = torch.zeros(m, 10, dtype=torch.bool)
    if place == "activation":
        x[0, 5], want[0] = float("nan"), True
    else:
        # Row 4 of the weight has blocks 12 to 14.
        args[2][14], want[:, 4] = float("nan"), True
    assert torch.equal(gemm_4bit.run(x, *args).isnan(), want)


def test_results_do_not_depend_on_the_number_of_threads():
    args, _ = quantized(Case(501, 640, 64))
    threads = torch.get_num_threads()
    try:
        for m in (1, 9):
            x, found = torch.randn(m, 640).bfloat16(), []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(gemm_4bit.run(x, *args))
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])
    finally:
        torch.set_num_threads(threads)


def test_equal_to_the_reference_within_rounding():
    args, _ = quantized(Case(40, 256, 64))
    x = torch.randn(4, 256)
    torch.testing.assert_close(
        gemm_4bit.run(x, *args), gemm_4bit_torch(x, *args), rtol=1e-5, atol=1e-6
    )


def test_which_way_serves():
    assert matmul.choose(1, 576, 64, torch.bfloat16) == "row"
    assert matmul.choose(1, 100, 64, torch.bfloat16) == "dense"
    wide = host().level.startswith("avx512")
    assert matmul.choose(25, 576, 64, torch.bfloat16) == ("tile" if wide else "dense")
    assert matmul.choose(512, 576, 64, torch.float32) == ("tile" if wide else "dense")


def test_formats_have_the_codebooks_that_kernels_read():
    assert all(len(f.values) == 16 and len(f.thresholds) == 15 for f in FORMATS4.values())
