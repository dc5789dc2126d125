"""warmup on the CPU; for CUDA see tests/gpu."""

from __future__ import annotations

import sys

import pytest
import torch

import bitsanywhere
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.targets import known

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


def test_8bit_layers_are_called_with_the_models_dtype(monkeypatch):
    int8 = bitsanywhere.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=6.0)
    model = torch.nn.Sequential(torch.nn.LayerNorm(64, dtype=torch.bfloat16), int8).to("cpu")
    seen = []
    monkeypatch.setattr(
        warmup.ops, "int8_linear", lambda x, *rest: seen.append((*x.shape, x.dtype, rest[2]))
    )
    assert bitsanywhere.warmup(model, rows=(1, 5), progress=False) == 2
    assert seen == [(1, 64, torch.bfloat16, 6.0), (5, 64, torch.bfloat16, 6.0)]


def test_the_kernels_of_both_kinds_of_layers_are_found():
    target = known("orin-nano")
    layers = torch.nn.ModuleList(
        (
            bitsanywhere.nn.LinearNF4(64, 32, compute_dtype=torch.float16),
            bitsanywhere.nn.Linear8bitLt(64, 32, has_fp16_weights=False),
        )
    ).to("cpu")
    sources = warmup._sources(list(layers), (1, 512), torch.bfloat16, target)
    files = {source.file for source in sources}
    assert {"dequantize_4bit.cuh", "int8_quantize.cuh", "int8_dequant.cuh"} <= files
    assert len(sources) == len(set(sources))
    assert len(warmup._sources(list(layers)[1:], (1,), torch.bfloat16, target)) == 2


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Linear(2, 2),
        bitsanywhere.nn.LinearNF4(64, 2),
        bitsanywhere.nn.Linear8bitLt(64, 2, has_fp16_weights=False),
    ],
)
def test_refuses_a_model_without_quantized_layers(layer):
    with pytest.raises(InvalidArgumentError, match="no quantized layer"):
        bitsanywhere.warmup(torch.nn.Sequential(layer))
