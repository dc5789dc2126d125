"""Whatever watches or transforms a call sees the product: tracing, autocast, torch.func, export."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from bitsanywhere import functional as F
from bitsanywhere import matmul_4bit
from bitsanywhere.nn import LinearNF4


@pytest.fixture
def layer() -> LinearNF4:
    torch.manual_seed(0)
    return LinearNF4(64, 16, bias=False).to("cpu")


def weight(layer: LinearNF4) -> torch.Tensor:
    return F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def test_jit_trace(layer):
    x = torch.randn(3, 64)
    layer(x)
    traced = torch.jit.trace(layer, x, check_trace=False)
    other = torch.randn(3, 64)
    assert torch.allclose(traced(other), layer(other), atol=1e-6)


@pytest.mark.parametrize("grad", [False, True])
def test_vmap(layer, grad):
    x = torch.randn(5, 3, 64)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(torch.vmap(layer)(x), layer(x), atol=1e-5)


def test_forward_mode(layer):
    x, tangent = torch.randn(3, 64), torch.randn(3, 64)
    expected = tangent @ weight(layer).t()
    _, got = torch.func.jvp(layer, (x,), (tangent,))
    assert torch.allclose(got, expected, atol=1e-5)
    with forward_ad.dual_level():
        out = layer(forward_ad.make_dual(x, tangent))
        assert torch.allclose(forward_ad.unpack_dual(out).tangent, expected, atol=1e-5)


def test_func_grad(layer):
    x = torch.randn(3, 64)
    got = torch.func.grad(lambda x: layer(x).sum())(x)
    assert torch.allclose(got, weight(layer).sum(0).expand(3, -1), atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_autocast(layer, grad):
    x = torch.randn(3, 64, requires_grad=grad)
    with torch.autocast("cpu", torch.bfloat16):
        out = matmul_4bit(x, layer.weight.data, layer.weight.quant_state)
    assert out.dtype == torch.bfloat16
    if grad:
        out.sum().backward()
        assert x.grad.dtype == torch.float32


def test_float64_activations(layer):
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    out = matmul_4bit(x, layer.weight.data, layer.weight.quant_state)
    assert out.dtype == torch.float64
    assert torch.allclose(out, x @ weight(layer).double().t())
    out.sum().backward()
    assert torch.allclose(x.grad, weight(layer).double().sum(0).expand(3, -1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(layer, reentrant):
    x = torch.randn(3, 64, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    got, x.grad = x.grad, None
    layer(x).square().sum().backward()
    assert torch.allclose(got, x.grad)


def test_training_after_quantizing_in_inference_mode():
    with torch.inference_mode():
        layer = LinearNF4(64, 16).to("cpu")
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()


def test_saved_tensor_hooks_do_not_see_the_frozen_weight(layer):
    seen = []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        layer(x)
    assert layer.weight.shape not in seen


def test_bias_gradient_without_an_input_gradient():
    layer = LinearNF4(64, 16).to("cpu")
    layer(torch.randn(5, 64)).sum().backward()
    assert torch.allclose(layer.bias.grad, torch.full((16,), 5.0))


def test_export(layer):
    model, x = torch.nn.Sequential(layer), torch.randn(3, 64)
    layer(x)
    program = torch.export.export(model, (x,), strict=True)
    other = torch.randn(3, 64)
    assert torch.allclose(program.module()(other), model(other), atol=1e-6)


def test_compile_of_functions_that_read_the_state(layer):
    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = self.layer.weight
            restored = F.dequantize_4bit(held, held.quant_state)
            return x @ restored.t() + matmul_4bit(x, held.t(), quant_state=held.quant_state)

    x = torch.randn(3, 64)
    compiled = torch.compile(Reader(), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), Reader()(x), atol=1e-5)


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64])
def test_default_dtype_changes_nothing(default, cpu_implementation):
    x = torch.randn(32, 100, generator=torch.Generator().manual_seed(0))
    expected, expected_state = F.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    makers = (F.create_dynamic_map, F.create_linear_map, F.create_fp8_map, F.create_normal_map)
    maps = [make() for make in makers]
    torch.set_default_dtype(default)
    try:
        codes, state = F.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
        again = [make() for make in makers]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(codes, expected)
    assert state == expected_state
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(again, maps))


def test_references_leave_no_autograd_graph(monkeypatch):
    from bitsanywhere.ops import registry

    monkeypatch.setattr(registry, "load_backend", lambda device: ({}, None))
    _, state = F.quantize_4bit(torch.nn.Parameter(torch.randn(4, 64)))
    assert not state.absmax.requires_grad


def test_a_kernel_that_turns_out_not_to_compile_falls_back(monkeypatch, caplog):
    from bitsanywhere import ops
    from bitsanywhere.errors import BackendUnavailable
    from bitsanywhere.ops import registry

    def broken(*args):
        raise BackendUnavailable("numba is broken")

    kernels = {"quantize_4bit": registry.Kernel(broken, lambda *args: None)}
    monkeypatch.setattr(registry, "load_backend", lambda device: (kernels, None))
    x = torch.randn(4, 64)
    codes, _ = F.quantize_4bit(x)
    F.quantize_4bit(x)
    assert torch.equal(codes, ops.quantize_4bit.reference(x, 64, "fp4", torch.uint8)[0])
    said = [r for r in caplog.records if "numba is broken" in r.message]
    assert len(said) == 1


def test_threads(layer):
    x = torch.randn(8, 64)
    expected, wrong = layer(x), []

    def work() -> None:
        for _ in range(50):
            if not torch.equal(layer(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
