"""quantize and dequantize, 4-bit and 8-bit: bit-equal to the torch reference."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere.backends.cpu import (
    dequantize_4bit,
    dequantize_blockwise,
    quantize_4bit,
    quantize_blockwise,
)
from bitsanywhere.formats import create_dynamic_map, create_fp8_map, create_linear_map
from bitsanywhere.ops.dequantize_4bit import dequantize_4bit_torch
from bitsanywhere.ops.dequantize_blockwise import dequantize_blockwise_torch
from bitsanywhere.ops.quantize_4bit import quantize_4bit_torch
from bitsanywhere.ops.quantize_blockwise import quantize_blockwise_torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COUNTS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000, 4095, 4097, 150_001)
MAPS = (
    create_dynamic_map(),
    create_dynamic_map(signed=False),
    create_linear_map(),
    create_fp8_map(),
)


def values(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal values with an all-zero block, subnormal ones, signed zeros and ties."""
    x = torch.randn(count, generator=torch.Generator().manual_seed(count))
    if count > 4000:
        x[64:128] = 0.0
        x[256:512] *= 1e-40
        x[600:700] = (x[600:700] * 8).round() / 8
        x[700:720] = -0.0
        x[1024:2048] *= 1e30
    return x.to(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in shape, dtype and every value, NaN being equal to NaN."""
    if a.dtype.is_floating_point:
        a, b = a.nan_to_num(nan=1234.5), b.nan_to_num(nan=1234.5)
    return a.dtype == b.dtype and torch.equal(a, b)


def check_4bit(x: torch.Tensor, blocksize: int, quant_type: str, out: torch.dtype) -> None:
    packed, absmax = quantize_4bit.run(x, blocksize, quant_type, torch.uint8)
    want, want_absmax = quantize_4bit_torch(x, blocksize, quant_type, torch.uint8)
    assert same(absmax, want_absmax)
    assert same(packed, want)
    got = dequantize_4bit.run(packed, absmax, blocksize, quant_type, x.shape, out)
    assert same(got, dequantize_4bit_torch(packed, absmax, blocksize, quant_type, x.shape, out))


def check_8bit(x: torch.Tensor, code: torch.Tensor, blocksize: int, out: torch.dtype) -> None:
    codes, absmax = quantize_blockwise.run(x, code, blocksize)
    want, want_absmax = quantize_blockwise_torch(x, code, blocksize)
    assert same(absmax, want_absmax)
    assert same(codes, want)
    got = dequantize_blockwise.run(codes, absmax, code, blocksize, out)
    assert same(got, dequantize_blockwise_torch(codes, absmax, code, blocksize, out))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_4bit_equals_reference(dtype, quant_type):
    for count in COUNTS:
        for blocksize in (32, 64, 128, 4096):
            check_4bit(values(count, dtype), blocksize, quant_type, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_8bit_equals_reference(dtype):
    for count in COUNTS:
        for code, blocksize in zip(MAPS, (64, 256, 512, 4096)):
            check_8bit(values(count, dtype), code, blocksize, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_not_finite_do_as_in_the_reference(dtype):
    x = values(4097, dtype)
    x[3], x[130], x[200], x[4096] = float("nan"), float("inf"), float("-inf"), float("nan")
    check_4bit(x, 64, "nf4", dtype)
    check_4bit(x, 64, "fp4", dtype)
    check_8bit(x, MAPS[0], 64, dtype)


def test_every_code_and_scale_rounds_as_the_reference():
    absmax = torch.tensor(
        [0.0, 1e-45, 1e-39, 1e-30, 0.3, 1.0, 7e4, 3e38, float("inf"), float("nan")]
    )
    codes = torch.arange(256).repeat(10, 1).to(torch.uint8)
    for dtype in DTYPES:
        args = (absmax.repeat_interleave(8), 64, "nf4", (10 * 512,), dtype)
        assert same(dequantize_4bit.run(codes, *args), dequantize_4bit_torch(codes, *args))
        args = (absmax, MAPS[0], 256, dtype)
        assert same(
            dequantize_blockwise.run(codes, *args), dequantize_blockwise_torch(codes, *args)
        )


def test_every_level_equals_reference(level):
    for count in (1, 33, 4097):
        check_4bit(values(count, torch.bfloat16), 64, "fp4", torch.float32)
        check_4bit(values(count, torch.bfloat16), 64, "nf4", torch.bfloat16)
        check_8bit(values(count, torch.bfloat16), MAPS[0], 64, torch.bfloat16)


def test_storage_dtypes_views_and_strides():
    x = values(4096, torch.bfloat16).view(64, 64).t()
    packed, absmax = quantize_4bit.run(x, 64, "nf4", torch.uint8)
    want, _ = quantize_4bit_torch(x, 64, "nf4", torch.uint8)
    assert same(packed, want)
    for storage in (torch.bfloat16, torch.float32, torch.int8):
        stored, _ = quantize_4bit.run(x, 64, "nf4", storage)
        assert stored.dtype == storage
        assert same(stored.view(torch.uint8).view(-1), packed.view(-1))
        got = dequantize_4bit.run(stored, absmax, 64, "nf4", (64, 64), torch.float32)
        assert same(got, dequantize_4bit_torch(packed, absmax, 64, "nf4", (64, 64), torch.float32))


def test_out_is_written_in_place():
    x = values(1000, torch.float32)
    packed, absmax = quantize_4bit.run(x, 64, "nf4", torch.uint8)
    out = torch.full((1000,), float("nan"))
    assert dequantize_4bit.run(packed, absmax, 64, "nf4", (1000,), torch.float32, out=out) is out
    assert same(out, dequantize_4bit_torch(packed, absmax, 64, "nf4", (1000,), torch.float32))
    codes, absmax = quantize_blockwise.run(x, MAPS[0], 64)
    out = torch.full((1000,), float("nan"))
    dequantize_blockwise.run(codes, absmax, MAPS[0], 64, torch.float32, out=out)
    assert same(out, dequantize_blockwise_torch(codes, absmax, MAPS[0], 64, torch.float32))


def test_nothing_is_written_past_the_end():
    for count in (1, 33, 1000):
        x = values(count, torch.float32)
        packed, absmax = quantize_4bit.run(x, 64, "nf4", torch.uint8)
        out = torch.full((count + 64,), 7.0)
        dequantize_4bit.run(packed, absmax, 64, "nf4", (count,), torch.float32, out=out[:count])
        assert (out[count:] == 7.0).all()


def test_a_changed_codebook_is_noticed():
    x, code = values(1000, torch.float32), MAPS[0].clone()
    before, _ = quantize_blockwise.run(x, code, 64)
    code.copy_(MAPS[2])
    after, _ = quantize_blockwise.run(x, code, 64)
    assert not torch.equal(before, after)
    assert same(after, quantize_blockwise_torch(x, code, 64)[0])
