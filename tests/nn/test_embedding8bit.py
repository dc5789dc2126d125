"""Embedding8bit: rows are those of the dequantized table; Embedding, StableEmbedding."""

from __future__ import annotations

import copy

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere.errors import CheckpointError
from bitsanywhere.nn import Embedding, Embedding8bit, Int8Params, StableEmbedding
from bitsanywhere.optim import Adam8bit

ROWS = torch.tensor([[0, 10, 3], [3, 3, 9]])


@pytest.mark.parametrize("dimension", [64, 65, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows(dtype, dimension, cpu_implementation):
    table = Embedding8bit(11, dimension, dtype=dtype)
    before = table.weight.data.clone()
    table.to("cpu")
    assert isinstance(table.weight, Int8Params)
    codes, stats, _ = F.int8_vectorwise_quant(before.half())
    assert torch.equal(table.weight.data, codes)
    out = table(ROWS)
    assert out.dtype == dtype
    assert torch.equal(out, F.int8_vectorwise_dequant(codes, stats).to(dtype)[ROWS])
    assert table(torch.empty(0, dtype=torch.long)).shape == (0, dimension)
    error = (out.float() - before[ROWS].float()).abs().max()
    assert error <= before.float().abs().max() / 127


def test_is_quantized_at_the_first_forward():
    table = Embedding8bit(11, 8)
    before = table.weight.data.clone()
    assert torch.allclose(table(ROWS), before[ROWS], atol=0.03)
    assert table.weight.dtype == torch.int8


def test_state_dict_roundtrip():
    table = Embedding8bit(11, 24).to("cpu")
    assert list(table.state_dict()) == ["weight", "SCB", "weight_format"]
    for fresh in (Embedding8bit(11, 24), Embedding8bit(11, 24).to("cpu"), copy.deepcopy(table)):
        fresh.load_state_dict(table.state_dict())
        assert torch.equal(fresh(ROWS), table(ROWS))
    with pytest.raises(CheckpointError):
        Embedding8bit(12, 24).load_state_dict(table.state_dict())


@pytest.mark.parametrize("row", [11, -1])
def test_row_out_of_range(row):
    table = Embedding8bit(11, 8).to("cpu")
    with pytest.raises((IndexError, RuntimeError)):
        table(torch.tensor([row]))


@pytest.mark.parametrize("kind", [Embedding, StableEmbedding])
class TestFloat:
    def test_is_an_embedding(self, kind):
        torch.manual_seed(0)
        table = kind(300, 200, padding_idx=3)
        assert table.weight[3].abs().max() == 0
        limit = (6 / 500) ** 0.5
        assert table.weight.abs().max() <= limit
        assert abs(float(table.weight.detach().std()) - limit / 3**0.5) < 0.01 * limit
        table.weight.data.fill_(5)
        table.reset_parameters()
        assert table.weight[3].abs().max() == 0
        assert table.weight.abs().max() <= limit
        out = table(ROWS)
        wanted = table.weight[ROWS]
        if kind is StableEmbedding:
            wanted = torch.nn.functional.layer_norm(wanted, (200,))
        assert torch.equal(out, wanted)
        out.sum().backward()
        assert table.weight.grad is not None

    def test_keeps_its_optimizer_state_in_32_bits(self, kind):
        table, other = kind(64, 80), torch.nn.Embedding(64, 80)
        optimizer = Adam8bit([table.weight, other.weight])
        (table(ROWS).sum() + other(ROWS).sum()).backward()
        optimizer.step()
        assert optimizer.state[table.weight]["state1"].dtype == torch.float32
        assert optimizer.state[other.weight]["state1"].dtype == torch.uint8

    def test_given_weight_and_options(self, kind):
        weight = torch.randn(5, 4)
        table = kind(5, 4, None, 1.0, _weight=weight.clone(), sparse=kind is Embedding)
        out = table(torch.tensor([1]))
        if kind is Embedding:
            assert out.norm() <= 1.0001
            out.sum().backward()
            assert table.weight.grad.is_sparse


def test_stable_embedding_dtypes():
    table = StableEmbedding(11, 8, dtype=torch.bfloat16)
    assert table.weight.dtype == torch.bfloat16
    assert table.norm.weight.dtype == torch.float32
    assert table(ROWS).dtype == torch.bfloat16
    assert StableEmbedding(11, 8).bfloat16()(ROWS).dtype == torch.bfloat16
    assert list(table.state_dict()) == ["weight", "norm.weight", "norm.bias"]
    assert StableEmbedding(11, 8, device="meta").norm.weight.is_meta
