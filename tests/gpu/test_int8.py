"""LLM.int8() on a GPU: against exact sums and float64, in graphs, streams and compiled code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.ops.int8_mm_dequant import int8_mm_dequant_torch
from bitsanywhere.ops.int8_vectorwise_quant import int8_vectorwise_quant_torch
from tests.gpu.outliers import activations

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TOLERANCE = {torch.float16: 1.5e-3, torch.bfloat16: 8e-3, torch.float32: 3e-6}
ROWS = (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 100, 130, 257, 600)
# (N, K): multiples of everything; of 16 and 8 only; odd; wider than a block reads at once.
SHAPES = ((256, 512), (200, 320), (72, 1000), (33, 77), (1, 16), (5, 1), (130, 4160))


def weight(n: int, k: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    codes = torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8)
    return codes, torch.rand(n, device="cuda") + 0.1


def exact_sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sums of int8 products, which float64 holds exactly."""
    return (a.double() @ b.double().t()).int()


def expected_linear(x, codes, stats, threshold, bias) -> torch.Tensor:
    """The op's definition in float64, from the reference's own codes."""
    quantized, scale, columns = int8_vectorwise_quant_torch(x, threshold)
    dense = codes.double() * stats.double()[:, None] / 127
    out = (quantized.double() * scale.double()[:, None] / 127) @ dense.t()
    if columns is not None and columns.numel():
        out += x[:, columns].double() @ dense[:, columns].t()
    return out if bias is None else out + bias.double()


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_sums_are_exact(m, n, k):
    torch.manual_seed(m)
    a = torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8)
    b, _ = weight(n, k)
    out = ops.int8_linear_matmul(a, b)
    assert out.dtype == torch.int32
    assert torch.equal(out, exact_sums(a, b))
    target = torch.empty_like(out)
    torch.ops.bitsanywhere.int8_linear_matmul.out(a, b, target)
    assert torch.equal(target, out)


def test_largest_sums_do_not_overflow():
    a = torch.full((20, 20000), -127, device="cuda", dtype=torch.int8)
    assert (ops.int8_linear_matmul(a, a[:8]) == 127 * 127 * 20000).all()


@pytest.mark.parametrize("m", [1, 33, 200])
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaled_products_equal_the_references(m, n, k, dtype):
    torch.manual_seed(m)
    a = torch.randint(-127, 128, (m, k), device="cuda", dtype=torch.int8)
    b, stats_b = weight(n, k)
    stats_a = torch.rand(m, device="cuda")
    bias = torch.randn(n, device="cuda").to(dtype)
    for given in (None, bias):
        expected = int8_mm_dequant_torch(exact_sums(a, b), stats_a, stats_b, dtype, given)
        fused = ops.int8_scaled_mm(a, b, stats_a, stats_b, given, dtype)
        assert fused.dtype == dtype
        assert torch.equal(fused, expected)
        two = ops.int8_mm_dequant(ops.int8_linear_matmul(a, b), stats_a, stats_b, dtype, given)
        assert torch.equal(two, expected)
    assert ops.int8_scaled_mm(a, b, stats_a, stats_b).dtype == torch.float16


@pytest.mark.parametrize("outliers", [0, 1, 3, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", ROWS)
def test_linear_against_float64(m, dtype, outliers):
    for n, k in ((200, 320), (256, 512), (33, 77), (72, 1000)):
        x, _ = activations(m, k, dtype, outliers)
        codes, stats = weight(n, k)
        bias = torch.randn(n, device="cuda").to(dtype)
        for threshold in (0.0, 6.0):
            for given in (None, bias):
                out = ops.int8_linear(x, codes, stats, threshold, given)
                assert out.dtype == dtype
                expected = expected_linear(x, codes, stats, threshold, given)
                assert error(out, expected) < TOLERANCE[dtype], (n, k, threshold)


@pytest.mark.parametrize(
    ("m", "n"),
    [*((m, 4096) for m in (1, 16, 64, 128, 256, 2048)), (128, 14320), (256, 14320), (256, 14301)],
)
def test_large_linear(m, n):
    x, _ = activations(m, 4096, torch.float16, outliers=7)
    codes, stats = weight(n, 4096)
    for threshold in (0.0, 6.0):
        out = ops.int8_linear(x, codes, stats, threshold, None)
        expected = expected_linear(x, codes, stats, threshold, None)
        assert error(out, expected) < 1.5e-3
        worst = (out.double() - expected).abs().max() / expected.abs().max()
        assert worst < 2e-3


@pytest.mark.parametrize("m", [1, 40, 300])
def test_mixed_product(m):
    x, _ = activations(m, 320, torch.float16, outliers=5)
    codes, stats = weight(200, 320)
    quantized, scale, columns = ops.int8_vectorwise_quant(x, 6.0)
    out, values = ops.int8_mixed_scaled_mm(x, quantized, codes, scale, stats, columns, None)
    assert torch.equal(values, x[:, columns])
    assert error(out, expected_linear(x, codes, stats, 6.0, None)) < 1.5e-3
    plain, none = ops.int8_mixed_scaled_mm(x, quantized, codes, scale, stats, None, None)
    assert none.shape == (0,)
    assert torch.equal(plain, ops.int8_scaled_mm(quantized, codes, scale, stats, None, x.dtype))


@pytest.mark.parametrize("m", [1, 16, 300])
def test_non_finite_activations_show(m):
    x, _ = activations(m, 256, torch.float16)
    codes, stats = weight(64, 256)
    clean = ops.int8_linear(x, codes, stats, 6.0, None)
    x[0, 3] = float("nan")
    out = ops.int8_linear(x, codes, stats, 6.0, None)
    assert out[0].isnan().all()
    assert torch.equal(out[1:], clean[1:])
    x[0, 3] = float("inf")
    codes[:, 3] = 1
    assert ops.int8_linear(x, codes, stats, 6.0, None)[0].isinf().all()


def test_batched_strided_unaligned_and_empty_inputs():
    x, _ = activations(6, 128, torch.float16, outliers=2)
    codes, stats = weight(64, 128)
    flat = ops.int8_linear(x, codes, stats, 6.0, None)
    assert torch.equal(
        ops.int8_linear(x.view(2, 3, 128), codes, stats, 6.0, None).view(6, 64), flat
    )
    wide = x.repeat_interleave(2, 1)[:, ::2]
    assert not wide.is_contiguous()
    assert torch.equal(ops.int8_linear(wide, codes, stats, 6.0, None), flat)
    shifted = torch.empty(6 * 128 + 1, device="cuda", dtype=x.dtype)[1:].view(6, 128).copy_(x)
    assert torch.equal(ops.int8_linear(shifted, codes, stats, 6.0, None), flat)
    moved = (
        torch.empty(64 * 128 + 3, device="cuda", dtype=torch.int8)[3:].view(64, 128).copy_(codes)
    )
    assert torch.equal(ops.int8_linear(x, moved, stats, 6.0, None), flat)
    assert ops.int8_linear(x[:0], codes, stats, 6.0, None).shape == (0, 64)
    assert ops.int8_linear_matmul(codes[:0], codes).shape == (0, 64)
    assert ops.int8_vectorwise_quant(x[:0], 6.0)[0].shape == (0, 128)
    bias = torch.randn(64, device="cuda").half()
    nothing = ops.int8_linear(x[:, :0], codes[:, :0].contiguous(), stats, 6.0, bias)
    assert torch.equal(nothing, bias.expand(6, 64))


def test_more_rows_than_a_grid_dimension():
    x, _ = activations(70000, 32, torch.float16, outliers=1)
    codes, stats = weight(8, 32)
    out = ops.int8_linear(x, codes, stats, 6.0, None)
    assert error(out, expected_linear(x, codes, stats, 6.0, None)) < 1.5e-3


@pytest.mark.parametrize("m", [1, 16, 100, 300])
def test_is_deterministic(m):
    x, _ = activations(m, 4096, torch.float16, outliers=20)
    codes, stats = weight(1024, 4096)
    first = ops.int8_linear(x, codes, stats, 6.0, None)
    assert all(torch.equal(ops.int8_linear(x, codes, stats, 6.0, None), first) for _ in range(20))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("m", [1, 16, 100, 300])
def test_cuda_graph(m, threshold):
    torch.use_deterministic_algorithms(False)
    codes, stats = weight(768, 512)
    x, _ = activations(m, 512, torch.float16, outliers=4)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ops.int8_linear(x, codes, stats, threshold, None)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.int8_linear(x, codes, stats, threshold, None)
    for seed in range(3):
        x.copy_(activations(m, 512, torch.float16, outliers=seed * 3, seed=seed)[0])
        graph.replay()
        assert error(out, expected_linear(x, codes, stats, threshold, None)) < 1.5e-3


def test_cuda_graph_capture_as_first_use():
    """Nothing is warmed up: a fresh process captures its very first call."""
    script = """
import torch
from bitsanywhere import ops
codes = torch.randint(-127, 128, (768, 512), device="cuda", dtype=torch.int8)
stats = torch.rand(768, device="cuda")
x = torch.randn(4, 512, device="cuda", dtype=torch.float16) * 3
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    out = ops.int8_linear(x, codes, stats, 6.0, None)
graph.replay()
torch.cuda.synchronize()
assert torch.equal(out, ops.int8_linear(x, codes, stats, 6.0, None))
print("captured")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert "captured" in done.stdout, done.stderr


def test_does_not_wait_for_the_device():
    x, _ = activations(32, 512, torch.float16, outliers=3)
    codes, stats = weight(256, 512)
    torch.use_deterministic_algorithms(False)
    ops.int8_linear(x, codes, stats, 6.0, None)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.int8_linear(x, codes, stats, 6.0, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("m", [4, 300])
def test_streams(m):
    torch.use_deterministic_algorithms(False)
    codes, stats = weight(1024, 2048)
    inputs = [activations(m, 2048, torch.float16, outliers=5, seed=seed)[0] for seed in range(4)]
    expected = [ops.int8_linear(x, codes, stats, 6.0, None) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        outs = []
        for stream, x in zip(streams, inputs):
            with torch.cuda.stream(stream):
                outs.append(ops.int8_linear(x, codes, stats, 6.0, None))
        torch.cuda.synchronize()
        assert all(torch.equal(got, e) for got, e in zip(outs, expected))


def test_compile_fullgraph():
    torch.use_deterministic_algorithms(False)
    codes, stats = weight(512, 256)

    @torch.compile(fullgraph=True)
    def layer(x):
        return torch.ops.bitsanywhere.int8_linear(x, codes, stats, 6.0, None).relu()

    for m in (1, 33):
        x, _ = activations(m, 256, torch.float16, outliers=2)
        assert torch.equal(layer(x), ops.int8_linear(x, codes, stats, 6.0, None).relu())


PEER = """
import os
os.environ["BITSANYWHERE_BACKEND"] = "0"
import json, sys, torch, bitsandbytes
O, P = torch.ops.bitsanywhere, torch.ops.bitsandbytes
import bitsanywhere
report = {}
for m in (1, 16, 100):
    torch.manual_seed(m)
    x = torch.randn(m, 768, device="cuda").clamp(-5, 5).half()
    x[0, 5], x[m // 2, 100] = 30, -22
    codes, stats, _ = P.int8_vectorwise_quant(torch.randn(512, 768, device="cuda").half(), 0.0)
    bias = torch.randn(512, device="cuda").half()
    for threshold in (0.0, 6.0):
        a, b = (o.int8_vectorwise_quant(x.clone(), threshold) for o in (O, P))
        key = f"{m} {threshold}"
        columns = [[] if c is None else sorted(c.tolist()) for c in (a[2], b[2])]
        report[key + " columns"] = columns[0] == columns[1]
        report[key + " stats"] = (a[1] - b[1]).abs().max().item()
        report[key + " codes"] = (a[0].int() - b[0].int()).abs().max().item()
        out_b = P.int8_mixed_scaled_mm(x, b[0], codes, b[1], stats, b[2], bias)[0]
        out_a = O.int8_linear(x, codes, stats, threshold, bias)
        report[key + " linear"] = ((out_a - out_b).float().norm() / out_b.float().norm()).item()
    sums = [o.int8_linear_matmul(a[0], codes) for o in (O, P)]
    report[f"{m} sums"] = bool(torch.equal(*sums))
    scaled = [o.int8_scaled_mm(a[0], codes, a[1], stats, bias, torch.float16) for o in (O, P)]
    gap = (scaled[0] - scaled[1]).float().norm() / scaled[1].float().norm()
    report[f"{m} scaled"] = gap.item()
print("REPORT " + json.dumps(report))
"""


def test_agrees_with_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    done = subprocess.run(
        [sys.executable, "-c", PEER], capture_output=True, text=True, env=environment()
    )
    assert "REPORT" in done.stdout, done.stderr[-3000:]
    report = json.loads(done.stdout.split("REPORT ")[1])
    for key, value in report.items():
        if key.endswith(("columns", "sums")):
            assert value is True, key
        elif key.endswith("codes"):
            assert value <= 1, key
        else:
            assert value < 2e-3, (key, value)


def environment() -> dict[str, str]:
    places = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


@pytest.mark.parametrize("m", [1, 100])
def test_weights_quantized_just_before_their_product(m):
    """The product must not fetch weights early that the kernel ahead of it still writes."""
    weight = torch.randn(128, 1 << 17, device="cuda").half()
    x = torch.randn(m, 1 << 17, device="cuda").half()
    codes, scales, _ = ops.int8_vectorwise_quant(x, 0.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        CB, SCB, _ = ops.int8_vectorwise_quant(weight, 0.0)
        out = ops.int8_scaled_mm(codes, CB, scales, SCB)
        CB2, SCB2, _ = ops.int8_vectorwise_quant(weight, 0.0)
        linear = ops.int8_linear(x, CB2, SCB2, 0.0, None)
    graph.replay()
    expected = ops.int8_scaled_mm(codes, CB.clone(), scales, SCB.clone())
    expected_linear = ops.int8_linear(x, CB2.clone(), SCB2.clone(), 0.0, None)
    for _ in range(50):
        CB.fill_(77)
        CB2.fill_(77)
        graph.replay()
        assert torch.equal(out, expected)
        assert torch.equal(linear, expected_linear)
