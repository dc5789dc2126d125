"""Which kernels a 4-bit weight lets a GPU's backend compile ahead; no GPU is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.errors import CacheError
from bitsanywhere.nn import Embedding4bit, LinearNF4, Params4bit
from bitsanywhere.nn import params4bit as module_of_weights
from bitsanywhere.nn import state_dict as module_of_loading

GPU = torch.device("cuda", 1)
SHAPE = torch.Size((32, 64))


@pytest.fixture
def expected(monkeypatch) -> list[tuple]:
    """What was expected: (op, device, facts)."""
    found: list[tuple] = []
    for op in (ops.gemm_4bit, ops.nest_absmax):
        monkeypatch.setattr(op, "expect", lambda *args, op=op: found.append((op.name, *args)))
    return found


def expect(weight: Params4bit, device: torch.device = GPU, shape: torch.Size = SHAPE) -> None:
    module_of_weights.expect_products(weight, device, shape, torch.float32)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_linear_layer(expected, nested, dtype):
    layer = LinearNF4(64, 32, compute_dtype=dtype, compress_statistics=nested)
    expect(layer.weight)
    product = ("gemm_4bit", GPU, SHAPE, 64, nested, dtype or torch.float32)
    assert expected == [product, *([("nest_absmax", GPU)] if nested else [])]


def test_statistics_that_are_nested_already(expected):
    layer = LinearNF4(64, 32).to("cpu")
    expect(layer.weight)
    assert [op for op, *_ in expected] == ["gemm_4bit"]


def test_what_multiplies_nothing_on_a_gpu(expected):
    expect(Embedding4bit(32, 64).weight)
    expect(Params4bit(torch.ones(SHAPE)))
    weight = LinearNF4(64, 32).weight
    expect(weight, torch.device("cpu"))
    expect(weight, shape=torch.Size((2, 16, 64)))
    LinearNF4(64, 32).to("cpu")
    assert expected == []


def test_a_wrong_environment_is_not_reported_before_the_call(monkeypatch):
    asked = []

    def refuse(*facts):
        asked.append(facts)
        raise CacheError("The folder belongs to another user.")

    monkeypatch.setattr(
        "bitsanywhere.ops.registry.load_backend",
        lambda device: ({"gemm_4bit": SimpleNamespace(expect=refuse)}, None),
    )
    expect(LinearNF4(64, 32, compress_statistics=False).weight)
    assert asked == [(GPU, SHAPE, 64, False, torch.float32)]


@pytest.mark.parametrize("assign", [False, True])
def test_loading_knows_the_layers_dtype(monkeypatch, assign):
    seen = []
    monkeypatch.setattr(
        module_of_loading,
        "expect_products",
        lambda weight, *facts: seen.append((weight.module, *facts)),
    )
    state = LinearNF4(64, 32).to("cpu").state_dict()
    layer = LinearNF4(64, 32, compute_dtype=torch.bfloat16).to("cpu")
    layer.load_state_dict(state, assign=assign)
    assert seen == [(layer, torch.device("cpu"), SHAPE, torch.float32)]
