"""nest_absmax and dequantize_4bit_nested: exact, on both implementations for the CPU."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere import ops
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.formats import create_dynamic_map

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def quantized(shape: tuple[int, ...], blocksize: int, quant_type: str, dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return F.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type, compress_statistics=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "blocksize", "quant_type"),
    [((1,), 64, "nf4"), ((33, 65), 32, "fp4"), ((700, 129), 32, "nf4"), ((0, 5), 64, "fp4")],
)
def test_dequantizing_equals_unnesting_first(
    shape, blocksize, quant_type, dtype, cpu_implementation
):
    codes, state = quantized(shape, blocksize, quant_type, dtype)
    fixed = (blocksize, quant_type, shape, dtype)
    got = ops.dequantize_4bit_nested(codes, *state.gemm_statistics(), *fixed)
    expected = ops.dequantize_4bit(codes, state.unnested_absmax(), *fixed)
    assert got.dtype == dtype
    assert got.shape == shape
    assert torch.equal(got, expected)
    assert torch.equal(F.dequantize_4bit(codes, state), expected)


def test_nesting_is_what_its_formula_says(cpu_implementation):
    code = create_dynamic_map()
    absmax = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 0.5
    codes, outer, offset = ops.nest_absmax(absmax, code)
    assert torch.equal(offset, absmax.mean())
    expected, expected_outer = ops.quantize_blockwise(absmax - offset, code, 256)
    assert torch.equal(codes, expected)
    assert torch.equal(outer, expected_outer)
    restored = code[codes.int()] * outer.repeat_interleave(256)[:1000] + offset
    assert (restored - absmax).abs().max() < 0.02


def test_nesting_nothing(cpu_implementation):
    codes, outer, offset = ops.nest_absmax(torch.empty(0), create_dynamic_map())
    assert (codes.shape, outer.shape, offset.item()) == ((0,), (0,), 0.0)


def change(arguments: tuple, place: int, value: object) -> tuple:
    return (*arguments[:place], value, *arguments[place + 1 :])


def test_wrong_statistics_are_refused():
    codes, state = quantized((64, 64), 64, "nf4")
    right = (codes, *state.gemm_statistics(), 64, "nf4", (64, 64), torch.float32)
    ops.dequantize_4bit_nested(*right)
    for place, wrong in (
        (0, codes[1:]), (1, state.state2.absmax.repeat(2)), (2, state.absmax[1:]),
        (3, state.state2.code[1:]), (4, state.state2.absmax.repeat(2)), (5, 63),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            ops.dequantize_4bit_nested(*change(right, place, wrong))
    for place in (1, 2, 3, 4):
        with pytest.raises(DtypeError):
            ops.dequantize_4bit_nested(*change(right, place, right[place].to(torch.float64)))
    with pytest.raises(InvalidArgumentError):
        ops.nest_absmax(torch.ones(5), torch.ones(255))
    with pytest.raises(DtypeError):
        ops.nest_absmax(torch.ones(5).half(), create_dynamic_map())


def test_opcheck():
    codes, state = quantized((33, 64), 64, "nf4")
    kinds = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    fixed = (64, "nf4", (33, 64), torch.float32)
    torch.library.opcheck(
        torch.ops.bitsanywhere.dequantize_4bit_nested.default,
        (codes, *state.gemm_statistics(), *fixed),
        test_utils=kinds,
    )
    torch.library.opcheck(
        torch.ops.bitsanywhere.nest_absmax.default,
        (torch.rand(300), create_dynamic_map()),
        test_utils=kinds,
    )


def test_each_state_has_a_map_of_its_own():
    _, first = quantized((8, 64), 64, "nf4")
    _, second = quantized((8, 64), 64, "nf4")
    _, third = F.quantize_blockwise(torch.randn(9))
    before = second.state2.code.clone()
    first.state2.code.zero_()
    third.code.zero_()
    assert torch.equal(second.state2.code, before)
    assert torch.equal(quantized((8, 64), 64, "nf4")[1].state2.code, before)


def test_a_codebook_must_ascend():
    code = create_dynamic_map()
    F.quantize_blockwise(torch.randn(9), code)
    code[7], code[8] = code[8].item(), code[7].item()
    with pytest.raises(InvalidArgumentError, match=r"code\[8\]"):
        F.quantize_blockwise(torch.randn(9), code)
