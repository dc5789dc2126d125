"""Quantize and dequantize on a GPU: golden outputs, and bit-equality with the references."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from benchmarks.cases import BLOCKSIZES, CODEC_SHAPES, DTYPES
from bitsanywhere import functional as F
from bitsanywhere import ops
from tests.golden.condense import digest

STORAGES = (torch.uint8, torch.bfloat16, torch.float32)


def same_bits(got: torch.Tensor, expected: torch.Tensor) -> bool:
    got, expected = got.cpu(), expected.cpu()
    return torch.equal(got.isnan(), expected.isnan()) and torch.equal(
        got.nan_to_num(0.0), expected.nan_to_num(0.0)
    )


def test_golden_4bit(golden_4bit, golden_tensors):
    x = golden_tensors[golden_4bit["x"]].cuda()
    codes, state = F.quantize_4bit(
        x,
        blocksize=golden_4bit["blocksize"],
        compress_statistics=golden_4bit["nested"],
        quant_type=golden_4bit["quant_type"],
    )
    expected = golden_4bit["sha256"]
    assert digest(codes) == expected["q"]
    back = F.dequantize_4bit(codes, state)
    if not golden_4bit["nested"]:
        assert digest(state.absmax) == expected["absmax"]
        if "d" in expected:
            assert digest(back) == expected["d"]
        return
    # The mean of absmax is summed in another order here, so the offset may differ in its last bit.
    on_cpu, cpu_state = F.quantize_4bit(
        x.cpu(),
        blocksize=golden_4bit["blocksize"],
        compress_statistics=True,
        quant_type=golden_4bit["quant_type"],
    )
    assert digest(cpu_state.absmax) == expected["absmax"]
    torch.testing.assert_close(state.offset.cpu(), cpu_state.offset, rtol=3e-7, atol=0)
    differing = (state.absmax.cpu() != cpu_state.absmax).sum().item()
    assert differing <= max(1, state.absmax.numel() // 1000)
    torch.testing.assert_close(
        state.unnested_absmax().cpu(), cpu_state.unnested_absmax(), rtol=0.02, atol=1e-6
    )


def test_golden_8bit(golden_8bit, golden_tensors):
    x = golden_tensors[golden_8bit["x"]].cuda()
    codes, state = F.quantize_blockwise(x, blocksize=golden_8bit["blocksize"])
    got = {"q": codes, "absmax": state.absmax, "d": F.dequantize_blockwise(codes, state)}
    for name, expected in golden_8bit["sha256"].items():
        assert digest(got[name]) == expected, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CODEC_SHAPES, ids=str)
def test_4bit_equals_the_reference(shape, dtype):
    x = torch.randn(shape).to(dtype)
    for blocksize, quant_type in product(BLOCKSIZES, ("nf4", "fp4")):
        codes, absmax = ops.quantize_4bit(x.cuda(), blocksize, quant_type, torch.uint8)
        expected, expected_absmax = ops.quantize_4bit.reference(
            x, blocksize, quant_type, torch.uint8
        )
        assert torch.equal(codes.cpu(), expected), (blocksize, quant_type)
        assert torch.equal(absmax.cpu(), expected_absmax)
        for out in DTYPES:
            arguments = (blocksize, quant_type, x.shape, out)
            back = ops.dequantize_4bit(codes, absmax, *arguments)
            assert same_bits(
                back, ops.dequantize_4bit.reference(expected, absmax.cpu(), *arguments)
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (33, 65), (700, 1024)], ids=str)
def test_nested_4bit_equals_unnesting_first(shape, dtype):
    x = torch.randn(shape, device="cuda", dtype=dtype)
    for blocksize, quant_type in ((32, "nf4"), (64, "fp4"), (4096, "nf4")):
        codes, state = F.quantize_4bit(
            x, blocksize=blocksize, quant_type=quant_type, compress_statistics=True
        )
        fixed = (blocksize, quant_type, x.shape, dtype)
        unnested = ops.dequantize_4bit(codes, state.unnested_absmax(), *fixed)
        assert same_bits(F.dequantize_4bit(codes, state), unnested)
        statistics = [tensor.cpu() for tensor in state.gemm_statistics()]
        reference = ops.dequantize_4bit_nested.reference(codes.cpu(), *statistics, *fixed)
        assert same_bits(unnested, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CODEC_SHAPES, ids=str)
@pytest.mark.parametrize("table", ["dynamic", "unsigned", "linear", "fp8", "normal"])
def test_8bit_equals_the_reference(table, shape, dtype):
    code = {
        "dynamic": F.create_dynamic_map(),
        "unsigned": F.create_dynamic_map(signed=False),
        "linear": F.create_linear_map(),
        "fp8": F.create_fp8_map(),
        "normal": F.create_normal_map(),
    }[table]
    x = torch.randn(shape).to(dtype)
    x = torch.where(x.abs() < 0.1, 0.0, x)
    for blocksize in BLOCKSIZES:
        codes, absmax = ops.quantize_blockwise(x.cuda(), code.cuda(), blocksize)
        expected, expected_absmax = ops.quantize_blockwise.reference(x, code, blocksize)
        assert torch.equal(codes.cpu(), expected), blocksize
        assert torch.equal(absmax.cpu(), expected_absmax)
        back = ops.dequantize_blockwise(codes, absmax, code.cuda(), blocksize, dtype)
        assert same_bits(
            back,
            ops.dequantize_blockwise.reference(expected, expected_absmax, code, blocksize, dtype),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_at_and_around_every_threshold(dtype):
    from bitsanywhere.formats import FORMATS4

    for name, format4 in FORMATS4.items():
        t = torch.tensor(format4.thresholds)
        inf = torch.tensor(float("inf"))
        near = torch.cat([t, torch.nextafter(t, inf), torch.nextafter(t, -inf), -t]).to(dtype)
        x = torch.zeros(near.numel(), 64, dtype=dtype)
        x[:, 0], x[:, 1] = 1, near
        codes, _ = ops.quantize_4bit(x.cuda(), 64, name, torch.uint8)
        expected, _ = ops.quantize_4bit.reference(x, 64, name, torch.uint8)
        assert torch.equal(codes.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(bad, dtype):
    x = torch.randn(5, 64).to(dtype)
    x[2, 11] = bad
    x[4] = 0
    for quant_type in ("nf4", "fp4"):
        codes, absmax = ops.quantize_4bit(x.cuda(), 64, quant_type, torch.uint8)
        expected, expected_absmax = ops.quantize_4bit.reference(x, 64, quant_type, torch.uint8)
        assert torch.equal(codes.cpu(), expected)
        assert same_bits(absmax, expected_absmax)
    code = F.create_dynamic_map()
    codes, absmax = ops.quantize_blockwise(x.cuda(), code.cuda(), 64)
    expected, expected_absmax = ops.quantize_blockwise.reference(x, code, 64)
    assert torch.equal(codes.cpu(), expected)
    assert same_bits(absmax, expected_absmax)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_storage_and_strides(storage):
    x = torch.randn(66, 128, device="cuda")[::2, ::2].t()
    codes, state = F.quantize_4bit(x, quant_type="nf4", quant_storage=storage)
    expected, _ = ops.quantize_4bit.reference(x.cpu().contiguous(), 64, "nf4", torch.uint8)
    assert torch.equal(codes.cpu().view(torch.uint8).flatten(), expected.flatten())
    assert F.dequantize_4bit(codes, state).shape == x.shape
    offset = torch.randn(1001, device="cuda")[1:]
    codes, _ = F.quantize_4bit(offset)
    expected, _ = F.quantize_4bit(offset.clone())
    assert torch.equal(codes, expected), "a view that is not 16-byte aligned"


@pytest.mark.parametrize("shape", [(0,), (0, 64)])
def test_empty(shape):
    codes, state = F.quantize_4bit(torch.empty(shape, device="cuda"), compress_statistics=True)
    assert F.dequantize_4bit(codes, state).shape == shape
    codes, state = F.quantize_blockwise(torch.empty(shape, device="cuda"))
    assert F.dequantize_blockwise(codes, state).shape == shape


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_more_than_2_to_31_elements(kind):
    """The tail, beyond what 32 bits can index, equals the same values quantized alone."""
    count = 2**31 + 192
    x = torch.empty(count, dtype=torch.bfloat16, device="cuda").normal_()
    tail = slice(count - 4096 - 192, None)
    if kind == "4bit":
        codes, state = F.quantize_4bit(x, quant_type="nf4")
        alone, alone_state = F.quantize_4bit(x[tail], quant_type="nf4")
        assert torch.equal(codes.flatten()[-alone.numel() :], alone.flatten())
        back = F.dequantize_4bit(codes, state)[tail]
        assert torch.equal(back, F.dequantize_4bit(alone, alone_state))
    else:
        codes, state = F.quantize_blockwise(x, blocksize=64)
        alone, alone_state = F.quantize_blockwise(x[tail], blocksize=64)
        assert torch.equal(codes[tail], alone)
        back = F.dequantize_blockwise(codes, state)[tail]
        assert torch.equal(back, F.dequantize_blockwise(alone, alone_state))
