"""The CUDA kernels on a real GPU: bit-equal codecs, matrix products against float64."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import formats, ops  # noqa: F401
from bitsanywhere.ops.dequantize_4bit import lookup_torch
from bitsanywhere.ops.dequantize_blockwise import dequantize_blockwise_torch
from bitsanywhere.ops.gemm_4bit import unnest_torch
from bitsanywhere.ops.quantize_4bit import quantize_4bit_torch
from bitsanywhere.ops.quantize_blockwise import quantize_blockwise_torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CUDA = torch.ops.bitsanywhere
# Relative error of the product's operands in the dtype, with room for the sum.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bitwise equality, but one NaN is as good as another."""
    both_nan = left.isnan() & right.isnan() if left.is_floating_point() else left == right
    return left.shape == right.shape and bool(((left == right) | both_nan).all())


def inputs(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal values with a zero block, small values, and (if long enough) NaN and infinities."""
    torch.manual_seed(count)
    x = torch.randn(count, device="cuda")
    x[: count // 3] *= 1e-3
    x[count // 2 : count // 2 + 64] = 0
    if count > 900:
        x[5], x[700], x[800] = float("nan"), float("inf"), -float("inf")
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", formats.BLOCKSIZES_4BIT)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_codec_is_the_reference(dtype, blocksize, quant_type):
    code = formats.codebook4(quant_type).tensor("cuda")
    for count in (1, 2, 63, 1001, 3 * 8192 + 17, 1 << 17):
        x = inputs(count, dtype)
        packed, absmax = CUDA.quantize_4bit(x, blocksize, quant_type, torch.uint8)
        expected, expected_absmax = quantize_4bit_torch(x, blocksize, quant_type, torch.uint8)
        assert same(packed, expected)
        assert same(absmax, expected_absmax)
        out = torch.full((count,), float("nan"), dtype=dtype, device="cuda")
        CUDA.dequantize_4bit.out(packed, absmax, blocksize, quant_type, (count,), dtype, out)
        assert same(out, lookup_torch(packed, absmax, blocksize, code, (count,), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", formats.BLOCKSIZES_8BIT)
def test_8bit_codec_is_the_reference(dtype, blocksize):
    maps = (
        formats.create_dynamic_map(),
        formats.create_dynamic_map(signed=False),
        formats.create_linear_map(),
        torch.randn(256).sort().values,
    )
    for code in (table.to("cuda") for table in maps):
        for count in (1, 1001, 3 * 8192 + 17):
            x = inputs(count, dtype)
            codes, absmax = CUDA.quantize_blockwise(x, code, blocksize)
            expected, expected_absmax = quantize_blockwise_torch(x, code, blocksize)
            assert same(codes, expected)
            assert same(absmax, expected_absmax)
            out = CUDA.dequantize_blockwise(codes, absmax, code, blocksize, dtype)
            assert same(out, dequantize_blockwise_torch(codes, absmax, code, blocksize, dtype))


@pytest.mark.parametrize("blocksize", [64, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codecs_of_views_at_odd_addresses(dtype, blocksize):
    x, code = inputs(30002, dtype)[1:], formats.create_dynamic_map().cuda()
    assert x.data_ptr() % 16
    expected = quantize_4bit_torch(x, blocksize, "fp4", torch.uint8)
    assert all(map(same, CUDA.quantize_4bit(x, blocksize, "fp4", torch.uint8), expected))
    expected = quantize_blockwise_torch(x, code, blocksize)
    assert all(map(same, CUDA.quantize_blockwise(x, code, blocksize), expected))


def test_views_at_odd_addresses():
    x = torch.randn(10001, device="cuda", dtype=torch.bfloat16)[1:]
    packed, absmax = CUDA.quantize_4bit(x, 64, "nf4", torch.uint8)
    assert same(packed, quantize_4bit_torch(x, 64, "nf4", torch.uint8)[0])
    shifted = torch.cat((packed[:1], packed))[1:]
    assert shifted.data_ptr() % 16
    back = CUDA.dequantize_4bit(shifted, absmax, 64, "nf4", (100, 100), torch.bfloat16)
    assert same(back, CUDA.dequantize_4bit(packed, absmax, 64, "nf4", (100, 100), torch.bfloat16))
    activations = torch.randn(3 * 100 + 1, device="cuda", dtype=torch.bfloat16)[1:].view(3, 100)
    left = CUDA.gemm_4bit(activations, shifted, (100, 100), absmax, 64, "nf4")
    assert (left - activations @ back.t()).abs().max() < 0.05 * left.abs().max()


def weight(n: int, k: int, blocksize: int, nested: bool) -> dict:
    """A random packed weight and its scales."""
    blocks = -(-n * k // blocksize)
    packed = torch.randint(0, 256, ((n * k + 1) // 2, 1), dtype=torch.uint8, device="cuda")
    if not nested:
        return {
            "B": packed,
            "absmax": torch.rand(blocks, device="cuda") + 0.1,
            "nested": (None,) * 3,
        }
    return {
        "B": packed,
        "absmax": torch.rand(-(-blocks // 256), device="cuda") + 0.1,
        "nested": (
            torch.randint(0, 256, (blocks,), dtype=torch.uint8, device="cuda"),
            formats.create_dynamic_map().to("cuda"),
            torch.tensor(1.5, device="cuda"),
        ),
    }


def exact(A, B, shape, absmax, blocksize, code, bias, nested):
    """The product in float64."""
    scale = unnest_torch(absmax, *nested)
    dense = lookup_torch(B, scale, blocksize, code.double(), shape, torch.float64)
    out = A.double() @ dense.t()
    return out if bias is None else out + bias.double()


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative RMS error; NaN counts as wrong."""
    error = ((out.double() - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


SHAPES = (
    (128, 64), (96, 32), (333, 1024), (77, 1056), (130, 352), (200, 999), (64, 1000),
    (1000, 4096), (4096, 4096), (33000, 4096), (250, 4304),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemm_matches_float64(shape, dtype):
    n, k = shape
    for step, m in enumerate((1, 2, 8, 9, 16, 17, 32, 33, 64, 65, 130, 300)):
        blocksize = formats.BLOCKSIZES_4BIT[(step + k) % 8 if step % 2 else 1]
        quant_type, nested = ("nf4", "fp4")[step % 2], step % 3 == 0
        given = weight(n, k, blocksize, nested)
        A = torch.randn(m, k, device="cuda").to(dtype)
        bias = torch.randn(n, device="cuda").to(dtype) if step % 4 else None
        args = (
            A,
            given["B"],
            shape,
            given["absmax"],
            blocksize,
            quant_type,
            bias,
            *given["nested"],
        )
        out = CUDA.gemm_4bit(*args)
        code = formats.codebook4(quant_type).tensor("cuda")
        expected = exact(
            A, given["B"], shape, given["absmax"], blocksize, code, bias, given["nested"]
        )
        assert out.shape == (m, n)
        assert out.dtype == dtype
        assert relative(out, expected) < TOLERANCE[dtype], (m, blocksize, quant_type, nested)
        assert torch.equal(out, CUDA.gemm_4bit(*args)), "not deterministic"


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemv_takes_any_codebook_and_fills_out(dtype):
    n, k = 515, 2048
    given, code = weight(n, k, 128, nested=False), torch.randn(16, device="cuda")
    for m in (1, 5, 40):
        A = torch.randn(m, k, device="cuda").to(dtype)
        out = torch.full((m, n), float("nan"), device="cuda", dtype=dtype)
        CUDA.gemv_4bit.out(A, given["B"], (n, k), given["absmax"], code, 128, out)
        expected = exact(A, given["B"], (n, k), given["absmax"], 128, code, None, (None,) * 3)
        assert relative(out, expected) < TOLERANCE[dtype]


def test_graph_replays_and_streams():
    n, k = 1024, 4096
    given = weight(n, k, 64, nested=False)
    A = torch.randn(4, k, device="cuda", dtype=torch.bfloat16)

    def product() -> torch.Tensor:
        return CUDA.gemm_4bit(A, given["B"], (n, k), given["absmax"], 64, "nf4")

    expected = product()
    graphs, outs = [], []
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs.append([product() for _ in range(20)])
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    # Graphs and eager calls at once, each on a stream of its own.
    eager = []
    for _ in range(5):
        for graph, stream in zip(graphs, streams):
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in streams[2:]:
            with torch.cuda.stream(stream):
                eager.append(product())
    torch.cuda.synchronize()
    assert all(torch.equal(out, expected) for out in [*outs[0], *outs[1], *eager])


def test_captured_before_any_eager_call():
    given = weight(96, 1536, 32, nested=True)
    A = torch.randn(11, 1536, device="cuda", dtype=torch.float16)
    args = (A, given["B"], (96, 1536), given["absmax"], 32, "fp4", None, *given["nested"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = CUDA.gemm_4bit(*args)
    graph.replay()
    assert torch.equal(out, CUDA.gemm_4bit(*args))


def test_empty_inputs():
    code = formats.create_dynamic_map().to("cuda")
    empty = torch.empty(0, 8, device="cuda")
    assert CUDA.quantize_blockwise(empty, code, 64)[0].shape == (0, 8)
    given = weight(16, 64, 64, nested=False)
    out = CUDA.gemm_4bit(
        torch.empty(0, 64, device="cuda"), given["B"], (16, 64), given["absmax"], 64, "nf4"
    )
    assert out.shape == (0, 16)
