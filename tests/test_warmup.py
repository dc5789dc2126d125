"""warmup on the CPU; for CUDA see tests/gpu."""

from __future__ import annotations

import sys

import pytest
import torch

import bitsanywhere
from bitsanywhere.errors import InvalidArgumentError

warmup = sys.modules["bitsanywhere.warmup"]


def test_calls_every_kind_of_layer_once_a_row_count(monkeypatch):
    model = torch.nn.Sequential(
        bitsanywhere.nn.LinearNF4(64, 32), bitsanywhere.nn.LinearNF4(64, 32), torch.nn.ReLU()
    ).to("cpu")
    before = [p.clone() for p in model.parameters()]
    seen = []
    monkeypatch.setattr(warmup, "matmul_4bit", lambda x, *rest: seen.append(x.shape[0]))
    assert bitsanywhere.warmup(model, rows=(1, 5), progress=False) == 2
    assert seen == [1, 5]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert model[0].compute_dtype is None


@pytest.mark.parametrize("layer", [torch.nn.Linear(2, 2), bitsanywhere.nn.LinearNF4(64, 2)])
def test_refuses_a_model_without_quantized_layers(layer):
    with pytest.raises(InvalidArgumentError, match="no quantized 4-bit layer"):
        bitsanywhere.warmup(torch.nn.Sequential(layer))
