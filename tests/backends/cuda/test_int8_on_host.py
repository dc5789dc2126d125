"""int8_math.cuh, compiled by the host's g++, compared with the references."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bitsanywhere.backends import cuda
from bitsanywhere.ops.int8_mm_dequant import int8_mm_dequant_torch
from bitsanywhere.ops.int8_vectorwise_quant import int8_vectorwise_quant_torch

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
HEADERS = Path(cuda.__file__).parent
SOURCE = """
#include "int8_math.cuh"

extern "C" {
void codes(const float* in, const float* absmax, signed char* out, long m, long k) {
  for (long i = 0; i < m * k; i++)
    out[i] = (signed char)int8_code(in[i], int8_inverse(absmax[i / k]));
}
// 99 where int8_code_plain does not do.
void plain_codes(const float* in, float absmax, signed char* out, long k) {
  float inverse = int8_inverse(absmax);
  for (long i = 0; i < k; i++)
    out[i] = int8_is_plain(inverse) ? (signed char)int8_code_plain(in[i], inverse) : 99;
}
void products(const int* sums, const float* a, const float* b, float* out, long m, long n) {
  for (long i = 0; i < m * n; i++) out[i] = int8_scaled(sums[i], a[i / n], b[i % n]);
}
void outlier(const float* x, const int* code, const float* scale_a, float scale_b, int weight,
             float* out, long m) {
  for (long i = 0; i < m; i++)
    out[i] = int8_with_outliers(int8_scaled(code[i] * weight, scale_a[i], scale_b),
                                int8_residual(x[i], code[i], scale_a[i]) * weight, scale_b);
}
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("int8")
    source, library = folder / "int8.cpp", folder / "int8.so"
    source.write_text(SOURCE)
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def address(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def test_codes_equal_the_reference(host):
    torch.manual_seed(0)
    rows = [torch.randn(200, 300) * 10.0 ** torch.randint(-30, 30, (200, 1))]
    special = torch.randn(6, 300)
    special[0], special[1, 4], special[2, 5] = 0, float("nan"), float("inf")
    special[3], special[4], special[5] = 1e-40, 3e38, special[5].half().float()
    x = torch.cat([*rows, special])
    expected, absmax, _ = int8_vectorwise_quant_torch(x, 0.0)
    got = torch.full_like(expected, 99)
    host.codes(address(x), address(absmax), address(got), ctypes.c_long(206), ctypes.c_long(300))
    assert torch.equal(got, expected)
    plain = torch.full_like(expected, 99)
    for row, largest, codes in zip(x, absmax, plain):
        host.plain_codes(
            address(row), ctypes.c_float(largest.item()), address(codes), ctypes.c_long(300)
        )
    special_rows = (plain == 99).all(1)
    assert special_rows.tolist() == [False] * 200 + [True] * 4 + [False] * 2
    assert torch.equal(plain[~special_rows], expected[~special_rows])


@pytest.mark.parametrize("absmax", [6e-8, 1e-3, 1.0, 3.7, 65504.0])
def test_plain_codes_equal_the_reference_for_every_float16(host, absmax):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    x = x[x.abs() <= absmax].contiguous()
    row = torch.cat([x, torch.tensor([absmax])])[None]
    expected, _, _ = int8_vectorwise_quant_torch(row, 0.0)
    got = torch.full_like(expected, 99)
    host.plain_codes(address(row), ctypes.c_float(absmax), address(got), ctypes.c_long(row.numel()))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("absmax", [0.0, 1e-40, float("inf"), float("nan")])
def test_rows_whose_inverse_is_not_positive_and_finite_are_not_plain(host, absmax):
    row, got = torch.zeros(1), torch.zeros(1, dtype=torch.int8)
    host.plain_codes(address(row), ctypes.c_float(absmax), address(got), ctypes.c_long(1))
    assert got.item() == 99


def test_scaled_sums_equal_the_reference(host):
    torch.manual_seed(1)
    sums = torch.randint(-(2**31), 2**31 - 1, (40, 50), dtype=torch.int64).int()
    a, b = torch.rand(40) * 10, torch.rand(50)
    got = torch.full((40, 50), float("nan"))
    host.products(
        address(sums), address(a), address(b), address(got), ctypes.c_long(40), ctypes.c_long(50)
    )
    assert torch.equal(got, int8_mm_dequant_torch(sums, a, b, torch.float32))


def test_an_outlier_column_counts_in_full_and_its_codes_not(host):
    """Whatever the code of an activation in an outlier column, the product is the activation's."""
    torch.manual_seed(2)
    x = torch.cat([torch.randn(100), torch.randn(100) * 50])
    code = torch.randint(-127, 128, (200,), dtype=torch.int32)
    scale = torch.rand(200) * 5
    got = torch.full((200,), float("nan"))
    host.outlier(
        address(x), address(code), address(scale), ctypes.c_float(0.7), 93, address(got),
        ctypes.c_long(200),
    )  # fmt: skip
    expected = x.double() * 93 * 0.7 / 127
    # Of the terms that cancel, the larger one decides the error.
    largest = torch.maximum(expected.abs(), (code * scale).double().abs() / 127 * 93 * 0.7 / 127)
    assert ((got - expected).abs() <= 1e-6 * largest).all()
