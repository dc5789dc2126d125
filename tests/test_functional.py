"""functional against the golden outputs of bitsandbytes 0.50.2, and on odd input."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from tests.golden.condense import digest

BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def gaussian(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_golden_4bit(golden_4bit, golden_tensors, cpu_implementation):
    x = golden_tensors[golden_4bit["x"]]
    codes, state = F.quantize_4bit(
        x,
        blocksize=golden_4bit["blocksize"],
        compress_statistics=golden_4bit["nested"],
        quant_type=golden_4bit["quant_type"],
    )
    got = {"q": codes, "absmax": state.absmax, "d": F.dequantize_4bit(codes, state)}
    if golden_4bit["nested"]:
        got |= {"absmax2": state.state2.absmax, "offset": state.offset}
    assert got["d"].shape == x.shape
    assert got["d"].dtype == x.dtype
    for name, expected in golden_4bit["sha256"].items():
        assert digest(got[name]) == expected, name


def test_golden_8bit(golden_8bit, golden_tensors, cpu_implementation):
    x = golden_tensors[golden_8bit["x"]]
    codes, state = F.quantize_blockwise(x, blocksize=golden_8bit["blocksize"])
    got = {"q": codes, "absmax": state.absmax, "d": F.dequantize_blockwise(codes, state)}
    for name, expected in golden_8bit["sha256"].items():
        assert digest(got[name]) == expected, name


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(16, 16), (7, 48), (3, 20), (5,), (1,), (2, 3, 129)])
def test_dequantized_is_code_times_scale(shape, quant_type, nested, cpu_implementation):
    """Also where a block spans rows, which bitsandbytes' CPU kernels get wrong."""
    x = gaussian(*shape, dtype=torch.bfloat16)
    codes, state = F.quantize_4bit(x, quant_type=quant_type, compress_statistics=nested)
    pairs = codes.flatten()
    nibbles = torch.stack((pairs >> 4, pairs & 15), 1).flatten()[: x.numel()].int()
    scale = state.unnested_absmax().repeat_interleave(64)[: x.numel()]
    expected = (state.code[nibbles] * scale).to(x.dtype).view(shape)
    assert torch.equal(F.dequantize_4bit(codes, state), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_error_is_at_most_half_a_step(quant_type, blocksize, dtype, cpu_implementation):
    x = gaussian(3, 1365, dtype=dtype)
    codes, state = F.quantize_4bit(x, blocksize=blocksize, quant_type=quant_type)
    values = state.code.sort().values
    half_step = (values[1:] - values[:-1]).max() / 2
    error = (F.dequantize_4bit(codes, state).float() - x.float()).abs()
    bound = state.absmax.repeat_interleave(blocksize)[: x.numel()].view(x.shape)
    assert (error <= bound * (half_step + torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_extreme_blocks(dtype, cpu_implementation):
    tiny = torch.finfo(dtype).tiny
    x = torch.zeros(4, 64, dtype=dtype)
    x[1, 5] = -tiny
    x[2] = torch.finfo(dtype).max
    codes, state = F.quantize_4bit(x, quant_type="nf4")
    back = F.dequantize_4bit(codes, state)
    assert torch.equal(back, x)
    codes, state = F.quantize_blockwise(x, blocksize=64)
    keep = [0, 2, 3]
    assert torch.equal(F.dequantize_blockwise(codes, state)[keep], x[keep])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_finite_input_stays_visible_and_in_its_block(bad, dtype, cpu_implementation):
    x = gaussian(4, 64, dtype=dtype)
    clean = F.dequantize_4bit(*F.quantize_4bit(x, quant_type="nf4"))
    x[1, 17] = bad
    back = F.dequantize_4bit(*F.quantize_4bit(x, quant_type="nf4"))
    assert not back[1].isfinite().any() or back[1, 17].isnan() or back[1, 17].isinf()
    assert not back[1, 17].isfinite()
    keep = [0, 2, 3]
    assert torch.equal(back[keep], clean[keep])
    codes, state = F.quantize_blockwise(x, blocksize=64)
    back = F.dequantize_blockwise(codes, state)
    assert not back[1, 17].isfinite()
    assert back[keep].isfinite().all()


def test_zero_stays_zero_in_8_bits(cpu_implementation):
    x = gaussian(1000)
    x[::7] = 0
    codes, state = F.quantize_blockwise(x, blocksize=256)
    assert (F.dequantize_blockwise(codes, state)[::7] == 0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 64), (3, 0)])
@pytest.mark.parametrize("nested", [False, True])
def test_empty(shape, nested, cpu_implementation):
    codes, state = F.quantize_4bit(torch.empty(shape), compress_statistics=nested)
    assert codes.shape == (0, 1)
    assert F.dequantize_4bit(codes, state).shape == shape
    codes, state = F.quantize_blockwise(torch.empty(shape), nested=nested)
    assert codes.shape == shape
    assert F.dequantize_blockwise(codes, state).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_contiguous_equals_contiguous(dtype, cpu_implementation):
    x = gaussian(66, 130, dtype=dtype)[1::2, ::2].t()
    assert not x.is_contiguous()
    codes, state = F.quantize_4bit(x, quant_type="nf4")
    expected, expected_state = F.quantize_4bit(x.contiguous(), quant_type="nf4")
    assert torch.equal(codes, expected)
    assert state == expected_state
    codes, state = F.quantize_blockwise(x, blocksize=64)
    expected, expected_state = F.quantize_blockwise(x.contiguous(), blocksize=64)
    assert torch.equal(codes, expected)
    strided = expected.repeat_interleave(2, dim=1)[:, ::2]
    assert not strided.is_contiguous()
    back = F.dequantize_blockwise(strided, state)
    assert torch.equal(back, F.dequantize_blockwise(expected, expected_state))


@pytest.mark.parametrize(
    "storage", [torch.uint8, torch.int8, torch.bfloat16, torch.float16, torch.float32]
)
def test_storage_dtypes_hold_the_same_bytes(storage, cpu_implementation):
    x = gaussian(8, 64, dtype=torch.bfloat16)
    codes, state = F.quantize_4bit(x, quant_storage=storage)
    plain, _ = F.quantize_4bit(x)
    assert codes.dtype == storage
    assert codes.shape == (256 // storage.itemsize, 1)
    assert torch.equal(codes.view(torch.uint8).flatten(), plain.flatten())
    assert torch.equal(F.dequantize_4bit(codes, state), F.dequantize_4bit(plain, state))


def test_transposed_codes_give_the_transposed_tensor():
    x = gaussian(8, 64)
    codes, state = F.quantize_4bit(x)
    assert torch.equal(F.dequantize_4bit(codes.t(), state), F.dequantize_4bit(codes, state).t())


def test_out_and_absmax_receive_the_result(cpu_implementation):
    x = gaussian(10, 64)
    expected, expected_state = F.quantize_4bit(x, quant_type="nf4")
    out, absmax = torch.full_like(expected, 255), torch.full((10,), float("nan"))
    codes, state = F.quantize_nf4(x, absmax=absmax, out=out)
    assert codes is out
    assert torch.equal(out, expected)
    assert torch.equal(absmax, expected_state.absmax)
    back = torch.full_like(x, float("nan"))
    assert F.dequantize_4bit(codes, absmax=absmax, out=back, quant_type="nf4") is back
    assert torch.equal(back, F.dequantize_4bit(codes, state))


@pytest.mark.parametrize("code", ["dynamic", "unsigned", "linear", "fp8", "normal"])
def test_8bit_maps(code, cpu_implementation):
    """Each code is the one nearest to the scaled value, within the 65536-point grid's half step."""
    table = {
        "dynamic": F.create_dynamic_map(),
        "unsigned": F.create_dynamic_map(signed=False),
        "linear": F.create_linear_map(),
        "fp8": F.create_fp8_map(),
        "normal": F.create_normal_map(),
    }[code]
    x = gaussian(33, 65)
    x = x.abs() if code == "unsigned" else x
    codes, state = F.quantize_blockwise(x, code=table, blocksize=128)
    scaled = x.flatten().double() / state.absmax.repeat_interleave(128)[: x.numel()].double()
    chosen = (table[codes.flatten().int()].double() - scaled).abs()
    nearest = (table.double().unsqueeze(0) - scaled.unsqueeze(1)).abs().amin(1)
    assert (chosen - nearest).max() < 2 / 32767.5


def test_nested_blockwise_restores_within_two_steps(cpu_implementation):
    x = gaussian(4000).abs() + 1
    plain = F.dequantize_blockwise(*F.quantize_blockwise(x, blocksize=64))
    nested = F.dequantize_blockwise(*F.quantize_blockwise(x, blocksize=64, nested=True))
    assert (plain - nested).abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"A": torch.zeros(4, dtype=torch.int32)}, DtypeError, "int32"),
        ({"A": torch.zeros(4, dtype=torch.float64)}, DtypeError, "float64"),
        ({"A": torch.zeros(4), "blocksize": 48}, InvalidArgumentError, "48"),
        ({"A": torch.zeros(4), "blocksize": 0}, InvalidArgumentError, "32, 64, 128"),
        ({"A": torch.zeros(4), "quant_type": "int4"}, InvalidArgumentError, "int4"),
        (
            {"A": torch.zeros(6), "quant_storage": torch.float32},
            InvalidArgumentError,
            "torch.uint8",
        ),
        (
            {"A": torch.zeros(64), "out": torch.zeros(3, 1, dtype=torch.uint8)},
            InvalidArgumentError,
            "out is",
        ),
    ],
)
def test_quantize_4bit_refuses(arguments, error, says):
    with pytest.raises(error, match=says):
        F.quantize_4bit(**arguments)


def test_dequantize_4bit_refuses_what_does_not_fit():
    codes, state = F.quantize_4bit(gaussian(8, 64))
    with pytest.raises(InvalidArgumentError, match="255 bytes"):
        F.dequantize_4bit(codes[:-1], state)
    state.absmax = state.absmax[:-1]
    with pytest.raises(InvalidArgumentError, match="absmax has 7"):
        F.dequantize_4bit(codes, state)
    with pytest.raises(InvalidArgumentError, match="quant_state is None"):
        F.dequantize_4bit(codes)
    with pytest.raises(InvalidArgumentError, match="quant_type None"):
        F.dequantize_4bit(*F.quantize_blockwise(gaussian(64)))


def test_quantize_blockwise_refuses():
    with pytest.raises(InvalidArgumentError, match="code has 255"):
        F.quantize_blockwise(gaussian(8), code=torch.zeros(255))
    with pytest.raises(DtypeError, match="int64"):
        F.quantize_blockwise(torch.zeros(4, dtype=torch.int64))


def test_gemv_4bit(cpu_implementation):
    weight, x = gaussian(48, 96), gaussian(1, 96, seed=1)
    codes, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    expected = x.double() @ F.dequantize_4bit(codes, state).double().t()
    got = F.gemv_4bit(x, codes.t(), state=state).double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidArgumentError, match="state is None"):
        F.gemv_4bit(x, codes)
