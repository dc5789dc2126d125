"""The CPU kernels of LLM.int8() against the references."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.backends.cpu import int8_linear, int8_product, load
from bitsanywhere.backends.cpu.common import unserved
from bitsanywhere.ops import registry

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def activations(shape, dtype) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).clamp(-4, 4)
    x[::3, ::7] = 11.0
    return x.to(dtype)


def codes(*shape: int) -> torch.Tensor:
    found = torch.randint(-128, 128, shape, dtype=torch.int8)
    found.view(-1)[:3] = torch.tensor([-128, 127, -128], dtype=torch.int8)[: found.numel()]
    return found


def served(name, *args):
    """What the kernel gives."""
    kernel = load()[name]
    if reason := kernel.why_not(*args):
        pytest.skip(reason)
    return kernel.run(*args)


@pytest.fixture
def references(monkeypatch):
    """Function (name, *args): what the reference gives, made of references alone."""

    def run(name, *args):
        with monkeypatch.context() as patch:
            patch.setattr(registry, "load_backend", lambda device: ({}, None))
            return ops.registry.OPS[name].reference(*args)

    return run


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 33, 65), (40, 35, 2100)])
def test_float64_in_place_of_a_wrong_product_of_torch(m, n, k, monkeypatch):
    monkeypatch.setattr(int8_product, "_torch_is_exact", lambda: False)
    monkeypatch.setattr(int8_product, "in_rows", lambda m: False)
    monkeypatch.setattr(int8_product, "_CONVERTED", 300)
    a, b = codes(m, k), codes(n, k)
    given = int8_product.matmul(a, b)
    assert given.dtype == torch.int32
    assert torch.equal(given.long(), a.long() @ b.long().t())


def test_a_wrong_product_of_torch_is_noticed_and_logged(monkeypatch, caplog):
    def overflowing(a, b):
        """As that of torch 2.5: neighbours are added in 16 bits, those of a without a sign."""
        pairs = (a.int() + 128).view(len(a), -1, 2, 1) * b.int().reshape(1, -1, 2, b.shape[1])
        sums = pairs.sum(2).clamp(-(2**15), 2**15 - 1).sum(1)
        return (sums - 128 * b.int().sum(0)).int()

    monkeypatch.setattr(torch, "_int_mm", overflowing)
    assert not int8_product._torch_is_exact.__wrapped__()
    assert "float64" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 16), (33, 257), (700, 130)])
def test_quantize(shape, dtype, references):
    for threshold in (0.0, 6.0):
        args = (activations(shape, dtype), threshold)
        given, wanted = (
            served("int8_vectorwise_quant", *args),
            references("int8_vectorwise_quant", *args),
        )
        for one, two in zip(given, wanted):
            assert (one is None and two is None) or torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 16), (600, 130)])
def test_dequantize(shape, references):
    args = (codes(*shape), torch.rand(shape[0]) * 3)
    given, wanted = (run("int8_vectorwise_dequant", *args) for run in (served, references))
    assert torch.equal(given, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (5, 16), (600, 130)])
def test_mm_dequant(shape, dtype, references):
    rows, columns = torch.rand(shape[0]) * 3, torch.rand(shape[1])
    product = torch.randint(-(10**8), 10**8, shape, dtype=torch.int32)
    for bias in (None, torch.randn(shape[1])):
        args = (product, rows, columns, dtype, bias)
        given, wanted = (run("int8_mm_dequant", *args) for run in (served, references))
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 7, 63), (6, 130, 64), (20, 35, 200)])
def test_linear(m, n, k, dtype, references):
    if reason := unserved(dtype):
        pytest.skip(reason)
    x, weight, stats = activations((m, k), dtype), codes(n, k), torch.rand(n)
    bias = torch.randn(n).to(dtype)
    for threshold in (0.0, 6.0):
        args = (x, weight, stats, threshold, bias)
        given, wanted = int8_linear.run(*args), references("int8_linear", *args)
        error = (given.float() - wanted.float()).norm() / wanted.float().norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.01)
        if threshold == 0:
            assert torch.equal(given, wanted)


def test_each_level_of_the_processor(level, references):
    x = activations((33, 77), torch.bfloat16)
    for one, two in zip(*(run("int8_vectorwise_quant", x, 6.0) for run in (served, references))):
        assert torch.equal(one, two)
    for name, args in {
        "int8_vectorwise_dequant": (codes(9, 77), torch.rand(9)),
        "int8_mm_dequant": (codes(9, 77).int(), torch.rand(9), torch.rand(77), torch.bfloat16),
        "int8_linear": (x, codes(20, 77), torch.rand(20), 0.0, None),
    }.items():
        assert torch.equal(served(name, *args), references(name, *args))


class TestTwoWays:
    """Products by our kernel and by torch's are the same, whatever the shape."""

    @pytest.fixture(params=["rows", "torch"])
    def way(self, request, monkeypatch):
        monkeypatch.setattr(int8_product, "in_rows", lambda m: request.param == "rows")
        if request.param == "rows" and not int8_product.has_dot_products(int8_product.host()):
            pytest.skip("this processor has no AVX-512 VNNI")

    @pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9, 10, 64])
    @pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 64), (5, 65), (66, 127), (400, 192)])
    def test_matmul(self, way, m, n, k):
        a, b = codes(m, k), codes(n, k)
        assert torch.equal(int8_product.matmul(a, b), (a.double() @ b.double().t()).int())

    @pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
    @pytest.mark.parametrize("m", [1, 4, 7])
    def test_outliers(self, way, m, count):
        n, k = 37, 70
        a, b, rows, columns = codes(m, k), codes(n, k), torch.rand(m), torch.rand(n)
        where, values = torch.randperm(k)[:count].sort().values, torch.randn(m, count) * 20
        bias = torch.randn(n, dtype=torch.bfloat16)
        given = int8_product.scaled(a, b, rows, columns, bias, torch.float32, where, values)
        product = (a.double() @ b.double().t()) * rows.double().unsqueeze(1) * columns / 127**2
        outliers = b[:, where].double().t() * columns / 127
        wanted = product + values.double() @ outliers + bias.double()
        # They may cancel, and each sum and product rounds (Higham, Accuracy and Stability, 3.1).
        size = product.abs() + values.abs().double() @ outliers.abs() + bias.abs().double()
        assert ((given.double() - wanted).abs() <= (count + 6) * 2.0**-24 * size).all()


def test_which_way():
    """Few rows by our kernel where the processor has the instruction, else torch's product."""
    assert int8_product.in_rows(1) is int8_product.has_dot_products(int8_product.host())
    assert int8_product.in_rows(10**6) is False


def test_layouts_and_many_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        a, b = codes(64, 40).t(), codes(64, 300).t()
        wanted = (a.double() @ b.double().t()).int()
        for _ in range(5):
            assert torch.equal(int8_product.matmul(a, b), wanted)
    finally:
        torch.set_num_threads(threads)
