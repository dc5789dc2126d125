"""4-bit matrix products on a GPU against float64, and in graphs, streams and compiled models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Gemm, gemm_cases
from bitsanywhere import functional as F
from bitsanywhere import ops
from bitsanywhere.nn import LinearNF4

ROOT = Path(__file__).parents[2]


def operands(case: Gemm, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, F.QuantState, object]:
    torch.manual_seed(seed)
    weight = torch.randn(case.n, case.k, device="cuda")
    x = torch.randn(case.m, case.k, device="cuda").to(case.dtype)
    codes, state = F.quantize_4bit(
        weight,
        blocksize=case.blocksize,
        quant_type=case.quant_type,
        compress_statistics=case.nested,
    )
    bias = torch.randn(case.n, device="cuda").to(case.dtype) if case.bias else None
    return x, codes, state, bias


def expected64(x, codes, state, bias) -> torch.Tensor:
    weight = F.dequantize_4bit(codes, state).double()
    out = x.double() @ weight.t()
    return out if bias is None else out + bias.double()


def run(case: Gemm, x, codes, state, bias) -> torch.Tensor:
    absmax, absmax_8bit, code, offset = state.gemm_statistics()
    return ops.gemm_4bit(
        x, codes, state.shape, absmax, case.blocksize, case.quant_type, bias,
        absmax_8bit, code, offset,
    )  # fmt: skip


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("case", gemm_cases(), ids=str)
def test_gemm_against_float64(case):
    x, codes, state, bias = operands(case)
    out = run(case, x, codes, state, bias)
    assert out.dtype == case.dtype
    assert out.shape == (case.m, case.n)
    expected = expected64(x, codes, state, bias)
    # The norm of a typical product of these operands: of one element, products may cancel.
    weight = F.dequantize_4bit(codes, state)
    scale = max(x.norm() * weight.norm() / case.k**0.5, expected.norm())
    assert ((out.double() - expected).norm() / scale).item() < case.tolerance


# Of most weights the last rows are fewer than a tile's, whichever tile an H200 is given. From 20
# batch rows on every kernel of gemm_4bit_wgmma.cuh is run, and below every one of gemm_4bit.cuh for
# chunks of 64 (test_gemm_4bit_config.py).
LARGE = [
    *((m, 4096, 4096) for m in (1, 8, 16, 64, 128, 512)),
    *((m, n, k) for m in (1, 8, 16) for n, k in ((10999, 4096), (4090, 11008))),
    *((m, 10998, 4096) for m in (20, 40, 100, 200, 384, 512)),
    (700, 4090, 4096), (30, 28600, 1024), (60, 28600, 1024), (250, 4090, 1024),
    *((m, 1738, 4128) for m in (20, 40, 100, 700)),
    # Nested scales are given tiles of their own where those come out even.
    *((m, 14330, 4096) for m in (1, 5, 16)), *((m, 28600, 8192) for m in (1, 8, 16)),
    (16, 8190, 28672), (1, 8190, 8192), *((m, 5100, 5120) for m in (5, 16)),
]  # fmt: skip


@pytest.mark.parametrize(("m", "n", "k"), [*LARGE, (16, 28601, 8192)])
@pytest.mark.parametrize("nested", [False, True])
def test_large_gemm_against_float64(m, n, k, nested):
    case = Gemm(m, n, k, nested=nested, bias=True)
    x, codes, state, bias = operands(case)
    assert error(run(case, x, codes, state, bias), expected64(x, codes, state, bias)) < 8e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", [1, 5])
def test_gemv_with_any_codebook(m, dtype):
    case = Gemm(m, 130, 96, dtype)
    x, codes, state, _ = operands(case)
    code = torch.randn(16, device="cuda")
    out = ops.gemv_4bit(x, codes, state.shape, state.absmax, code, 64)
    weight = looked_up(codes, code, state.absmax).view(130, 96)
    assert error(out, x.double() @ weight.t()) < case.tolerance


def looked_up(codes: torch.Tensor, code: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    pairs = codes.flatten()
    values = code[torch.stack((pairs >> 4, pairs & 15), 1).flatten().int()].double()
    return values * absmax.repeat_interleave(64).double()


@pytest.mark.parametrize("nested", [False, True])
def test_a_second_gemv_takes_what_the_state_says_then(nested):
    case = Gemm(1, 130, 96, torch.float16, nested=nested)
    x, codes, state, _ = operands(case)
    changes = (
        lambda: None,
        lambda: codes.bitwise_not_(),
        lambda: state.code.mul_(-2),
        lambda: setattr(state, "code", state.code.flip(0)),
        lambda: setattr(state.code, "data", state.code.flip(0) / 2),
        lambda: setattr(state.state2 or state, "absmax", (state.state2 or state).absmax * 3),
    )
    assert state.checked_by_gemv is None
    for change in changes:
        change()
        for _ in range(2):
            out = F.gemv_4bit(x, codes, state=state)
            weight = looked_up(codes, state.code, state.unnested_absmax()).view(130, 96)
            assert error(out, x.double() @ weight.t()) < case.tolerance
            assert state.checked_by_gemv is not None
    given = torch.empty_like(out)
    assert F.gemv_4bit(x, codes, given, state=state) is given
    assert torch.equal(given, out)


def test_batched_strided_and_empty_inputs():
    case = Gemm(6, 64, 128)
    x, codes, state, _ = operands(case)
    flat = run(case, x, codes, state, None)
    assert torch.equal(run(case, x.view(2, 3, 128), codes, state, None), flat.view(2, 3, 64))
    wide = x.repeat_interleave(2, 1)[:, ::2]
    assert not wide.is_contiguous()
    assert torch.equal(run(case, wide, codes, state, None), flat)
    assert run(case, x[:0], codes, state, None).shape == (0, 64)
    shifted = torch.empty(6 * 128 + 1, device="cuda", dtype=x.dtype)[1:].view(6, 128).copy_(x)
    assert torch.equal(run(case, shifted, codes, state, None), flat), "unaligned activations"


@pytest.mark.parametrize("m", [1, 16, 100])
def test_is_deterministic(m):
    case = Gemm(m, 4096, 4096)
    x, codes, state, _ = operands(case)
    first = run(case, x, codes, state, None)
    assert all(torch.equal(run(case, x, codes, state, None), first) for _ in range(20))


@pytest.mark.parametrize("m", [1, 16, 200])
def test_nan_and_inf_activations_show(m):
    case = Gemm(m, 64, 256)
    x, codes, state, _ = operands(case)
    clean = run(case, x, codes, state, None)
    x[0, 3] = float("nan")
    out = run(case, x, codes, state, None)
    assert out[0].isnan().all()
    assert torch.equal(out[1:], clean[1:])


@pytest.mark.parametrize("m", [1, 16, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cuda_graph(m, dtype):
    torch.use_deterministic_algorithms(False)
    layer = LinearNF4(512, 768, compute_dtype=dtype).cuda()
    x = torch.randn(m, 512, device="cuda", dtype=dtype)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        for seed in range(3):
            torch.manual_seed(seed)
            x.normal_()
            graph.replay()
            # Past some M cuBLAS does the product, and may choose another algorithm in a graph.
            assert error(out, layer(x).double()) < (1e-6 if m < 100 else 8e-3)


def test_cuda_graph_capture_as_first_use():
    """Nothing is warmed up: a fresh process captures its very first call."""
    script = """
import torch, bitsanywhere as bnb
layer = bnb.nn.LinearNF4(512, 768, compute_dtype=torch.bfloat16).cuda()
x = torch.randn(4, 512, device="cuda", dtype=torch.bfloat16)
graph = torch.cuda.CUDAGraph()
with torch.no_grad():
    with torch.cuda.graph(graph):
        out = layer(x)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, layer(x)), (out - layer(x)).abs().max()
print("captured")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment()
    )
    assert "captured" in done.stdout, done.stderr


def test_streams():
    torch.use_deterministic_algorithms(False)
    case = Gemm(4, 2048, 2048)
    streams = [torch.cuda.Stream() for _ in range(4)]
    work = [operands(case, seed) for seed in range(4)]
    torch.cuda.synchronize()
    expected = [run(case, *w[:3], None) for w in work]
    torch.cuda.synchronize()
    for _ in range(20):
        outs = []
        for stream, w in zip(streams, work):
            with torch.cuda.stream(stream):
                outs.append(run(case, *w[:3], None))
        torch.cuda.synchronize()
        assert all(torch.equal(got, e) for got, e in zip(outs, expected))


@pytest.mark.parametrize("m", [3, 200])
def test_gradients_against_float64(m):
    layer = LinearNF4(320, 256, compute_dtype=torch.bfloat16).cuda()
    x = torch.randn(m, 320, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    seed = torch.randn(m, 256, device="cuda", dtype=torch.bfloat16)
    layer(x).backward(seed)
    weight = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
    assert error(x.grad, seed.double() @ weight) < 8e-3


def test_compile_fullgraph():
    torch.use_deterministic_algorithms(False)
    model = torch.nn.Sequential(
        LinearNF4(256, 512, compute_dtype=torch.bfloat16),
        torch.nn.GELU(),
        LinearNF4(512, 128, compute_dtype=torch.bfloat16),
    ).cuda()
    compiled = torch.compile(model, fullgraph=True)
    for m in (1, 33):
        x = torch.randn(m, 256, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            expected = model(x)
            assert error(compiled(x), expected.double()) < 1e-2
    x.requires_grad_()
    compiled(x).square().sum().backward()
    gradient, x.grad = x.grad, None
    model(x).square().sum().backward()
    assert error(gradient, x.grad.double()) < 2e-2


@pytest.mark.parametrize("loaded", [False, True], ids=["quantized", "loaded"])
def test_a_layers_kernel_is_compiled_while_it_is_moved(tmp_path, loaded):
    script = f"""
import torch
from bitsanywhere.backends.cuda.jit import loader
from bitsanywhere.functional import dequantize_4bit
from bitsanywhere.nn import LinearNF4, Params4bit
layer = LinearNF4(2048, 512, bias=False, compute_dtype=torch.bfloat16)
if {loaded}:
    layer.to("cpu")
    state = layer.weight.quant_state.as_dict(packed=True)
    layer.weight = Params4bit.from_prequantized(layer.weight.data, state, module=layer)
else:
    layer.cuda()
begun = [src.file for src, _ in loader._ahead]
assert "gemm_4bit.cuh" in begun, begun
x = torch.randn(1, 2048, device="cuda", dtype=torch.bfloat16)
weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
out, wanted = layer(x).double(), x.double() @ weight.t()
assert (out - wanted).norm() < 8e-3 * wanted.norm()
assert set(loader._ahead) <= set(loader._kernels), loader._ahead
print("right")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(BITSANYWHERE_CACHE_DIR=str(tmp_path / "cache")),
    )
    assert "right" in done.stdout, done.stderr


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **changes}


def test_the_code_path_of_an_orin(tmp_path):
    """Kernels as compute_87 PTX finished by the driver, configured for an Orin Nano."""
    if os.environ.get("BITSANYWHERE_TARGET"):
        pytest.skip("this is that run")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         str(ROOT / "tests/gpu"), "-k", "not more_than_2_to_31 and not first_use"],
        capture_output=True, text=True, cwd=ROOT,
        env=environment(
            BITSANYWHERE_JIT_ARCH="compute_87",
            BITSANYWHERE_TARGET="orin-nano",
            BITSANYWHERE_CACHE_DIR=str(tmp_path / "cache"),
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
