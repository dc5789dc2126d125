"""Embedding4bit: looked-up rows equal the rows of the dequantized table."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere.nn import Embedding4bit, EmbeddingFP4, EmbeddingNF4


@pytest.mark.parametrize("dimension", [64, 192, 48, 65, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [EmbeddingNF4, EmbeddingFP4])
def test_rows(kind, dtype, dimension):
    table = kind(11, dimension, dtype=dtype).to("cpu")
    whole = F.dequantize_4bit(table.weight.data, table.weight.quant_state)
    rows = torch.tensor([[0, 10, 3], [3, 3, 9]])
    out = table(rows)
    assert out.dtype == dtype
    assert torch.equal(out, whole[rows])
    assert table(torch.empty(0, dtype=torch.long)).shape == (0, dimension)


@pytest.mark.parametrize("dimension", [64, 65])
def test_state_dict_roundtrip(dimension):
    table = EmbeddingNF4(9, dimension).to("cpu")
    fresh = EmbeddingNF4(9, dimension)
    fresh.load_state_dict(table.state_dict())
    rows = torch.arange(9)
    assert torch.equal(fresh(rows), table(rows))


@pytest.mark.parametrize("row", [9, -1])
@pytest.mark.parametrize("dimension", [64, 65])
def test_row_out_of_range(dimension, row):
    table = Embedding4bit(9, dimension).to("cpu")
    with pytest.raises((IndexError, RuntimeError)):
        table(torch.tensor([row]))
