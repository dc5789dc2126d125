"""A weight is checked once: whatever changes afterwards is noticed."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere import matmul_4bit, ops
from bitsanywhere.errors import BitsAnywhereError
from bitsanywhere.nn import LinearNF4

K, N = 64, 32


@pytest.fixture(params=[False, True], ids=["plain", "nested"])
def layer(request) -> LinearNF4:
    torch.manual_seed(0)
    module = LinearNF4(K, N, bias=False, compress_statistics=request.param).to("cpu")
    module(torch.ones(1, K))
    assert module.weight.quant_state.checked is not None
    return module


def expected(layer: LinearNF4, x: torch.Tensor) -> torch.Tensor:
    return x @ F.dequantize_4bit(layer.weight.data, layer.weight.quant_state).t()


def test_the_second_call_takes_the_short_way(layer, monkeypatch):
    x = torch.randn(3, K)
    first = layer(x)
    monkeypatch.setattr(ops.gemm_4bit, "check", None)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x.requires_grad_()), first)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight, state: setattr(weight, "data", weight.data.flip(0)),
        lambda weight, state: weight.data.zero_(),
        lambda weight, state: setattr(state, "absmax", state.absmax.flip(0)),
        lambda weight, state: state.absmax.zero_(),
        lambda weight, state: setattr(state.absmax, "data", state.absmax.flip(0)),
        lambda weight, state: setattr(state, "quant_type", "fp4"),
        lambda weight, state: setattr(state.state2 or state, "absmax", torch.ones(1)[:0]),
    ],
)
def test_changes_are_noticed(layer, change):
    x = torch.randn(3, K)
    change(layer.weight, layer.weight.quant_state)
    try:
        wanted = expected(layer, x)
    except BitsAnywhereError as error:
        with pytest.raises(type(error)):
            layer(x)
        return
    assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, K + 1), torch.ones(()), torch.ones(3, K).int(), torch.ones(3, K, device="meta")],
    ids=["columns", "scalar", "integers", "meta"],
)
def test_wrong_activations_are_refused_then_too(layer, x):
    with pytest.raises(BitsAnywhereError):
        matmul_4bit(x, layer.weight, layer.weight.quant_state)


def test_wrong_biases_are_refused_then_too(layer):
    x, state = torch.ones(3, K), layer.weight.quant_state
    for bias in (torch.ones(N + 1), torch.ones(N).half(), torch.ones(N, device="meta")):
        with pytest.raises(BitsAnywhereError):
            matmul_4bit(x, layer.weight, state, bias=bias)


def test_float64_marks_nothing_as_checked():
    codes, state = F.quantize_4bit(torch.randn(N, K), quant_type="nf4")
    matmul_4bit(torch.ones(1, K).double(), codes, state)
    assert state.checked is None


def test_moving_forgets_the_old_tensors(layer):
    state = layer.weight.quant_state
    state.to("cpu")
    assert state.checked is None


def test_setting_a_field_of_the_state_forgets_the_weight(layer):
    state = layer.weight.quant_state
    state.code = state.code
    assert state.checked is None


def test_states_that_share_their_outer_state_keep_what_they_know():
    layers = [LinearNF4(K, N, bias=False).to("cpu") for _ in range(2)]
    first, second = (each.weight.quant_state for each in layers)
    second.state2, second.offset = first.state2, first.offset
    x = torch.randn(3, K)
    for layer in layers:
        layer(x)
    known = first.checked, second.checked
    for layer in layers:
        assert torch.allclose(layer(x), expected(layer, x), atol=1e-5)
    assert first.checked is known[0]
    assert second.checked is known[1]
    first.state2.absmax = first.state2.absmax * 2
    for layer in layers:
        assert torch.allclose(layer(x), expected(layer, x), atol=1e-5)


def test_a_weight_that_is_not_contiguous_any_more_is_noticed():
    codes, state = F.quantize_4bit(torch.randn(N, K), quant_type="nf4")
    weight = codes.view(N, K // 2)
    x = torch.randn(3, K)
    first = matmul_4bit(x, weight, state)
    other = weight.t()
    assert other.data_ptr() == weight.data_ptr()
    assert not torch.equal(matmul_4bit(x, other, state), first)
    assert torch.equal(matmul_4bit(x, weight, state), first)
