"""Quantizing to int8 on a GPU: rows and columns, outliers, special values."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.ops.int8_double_quant import int8_double_quant_torch
from bitsanywhere.ops.int8_vectorwise_quant import int8_vectorwise_quant_torch
from tests.gpu.outliers import activations

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("threshold", [0.0, 6.0, 2.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (3, 77), (700, 320), (5, 20000), (40, 1001)])
def test_quantize_rows_is_bit_equal(shape, dtype, threshold):
    x, planted = activations(*shape, dtype, outliers=min(3, shape[1]))
    codes, stats, columns = ops.int8_vectorwise_quant(x, threshold)
    expected = int8_vectorwise_quant_torch(x, threshold)
    assert torch.equal(stats, expected[1])
    assert torch.equal(codes, expected[0])
    if threshold == 0:
        assert columns is None
        return
    assert columns.dtype == torch.int64
    assert torch.equal(columns, expected[2])
    if threshold == 6:
        assert torch.equal(columns, planted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_special_values(dtype):
    x = torch.randn(6, 40, device="cuda").to(dtype)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), -float("inf")
    x[3] = 0
    x[4], x[5] = 1e-7, 1e-40
    x[0, 4] = 9
    for threshold in (0.0, 3.0):
        for got, expected in zip(
            ops.int8_vectorwise_quant(x, threshold), int8_vectorwise_quant_torch(x, threshold)
        ):
            if got is None:
                assert expected is None
            else:
                assert torch.equal(got.float().nan_to_num(-99), expected.float().nan_to_num(-99))


def test_every_column_an_outlier_and_very_wide_rows():
    x = torch.full((3, 100), 9.0, device="cuda", dtype=torch.float16)
    codes, stats, columns = ops.int8_vectorwise_quant(x, 6.0)
    assert not codes.any()
    assert not stats.any()
    assert torch.equal(columns, torch.arange(100, device="cuda"))
    wide = torch.zeros(2, 150001, device="cuda", dtype=torch.float16)
    wide[1, 149999] = 7
    assert ops.int8_vectorwise_quant(wide, 6.0)[2].tolist() == [149999]
    assert ops.int8_vectorwise_quant(wide, 8.0)[2].tolist() == [], "marks of before were cleared"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_double_quant(dtype):
    x, _ = activations(70, 130, dtype, outliers=2)
    for got, expected in zip(ops.int8_double_quant(x, 6.0), int8_double_quant_torch(x.cpu(), 6.0)):
        assert torch.equal(got.cpu(), expected)
