"""Memory of large results is taken over once nothing refers to it, and never before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from bitsanywhere import functional as F
from bitsanywhere.backends.cpu.memory import Recycler

SHAPE = (1 << 11, 1 << 12)
BYTES = 4 * SHAPE[0] * SHAPE[1]


def test_is_used_again_only_when_free():
    recycler = Recycler(4 * BYTES)
    first = recycler.empty(SHAPE, torch.float32)
    address = first.data_ptr()
    view = first.t()[1:3]
    del first
    second = recycler.empty(SHAPE, torch.float32)
    assert second.data_ptr() != address, "a view still reads the first"
    del view
    third = recycler.empty((SHAPE[1], 2 * SHAPE[0]), torch.bfloat16)
    assert third.data_ptr() == address
    assert third.shape == (SHAPE[1], 2 * SHAPE[0])
    assert third.is_contiguous()
    numpy = third.view(torch.int16).numpy()
    del third
    assert recycler.empty(SHAPE, torch.float32).data_ptr() != address, "numpy still reads it"
    assert numpy.size


def test_keeps_no_more_than_its_limit():
    recycler = Recycler(2 * BYTES)
    held = [recycler.empty(SHAPE, torch.float32) for _ in range(5)]
    assert len({x.data_ptr() for x in held}) == 5
    assert len(recycler._kept) == 2
    assert (
        recycler.empty((5 * SHAPE[0], SHAPE[1]), torch.float32).numel() == 5 * SHAPE[0] * SHAPE[1]
    )
    assert len(recycler._kept) == 2


def test_small_results_are_not_kept():
    recycler = Recycler(BYTES)
    recycler.empty((100,), torch.float32)
    assert recycler._kept == []


def test_results_held_by_threads_stay_apart():
    weights = [torch.full(SHAPE, float(i + 1)) for i in range(4)]
    quantized = [F.quantize_4bit(weight, quant_type="nf4") for weight in weights]

    def restore(index: int) -> bool:
        for _ in range(10):
            first = F.dequantize_4bit(*quantized[index])
            second = F.dequantize_4bit(*quantized[index])
            if not (torch.equal(first, weights[index]) and torch.equal(second, weights[index])):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(restore, range(4)))


def test_an_autograd_graph_keeps_its_result():
    weight = torch.randn(SHAPE)
    codes, state = F.quantize_4bit(weight, quant_type="nf4")
    kept = F.dequantize_4bit(codes, state)
    x = torch.randn(1, SHAPE[1], requires_grad=True)
    out = x @ kept.t()
    del kept
    F.dequantize_4bit(*F.quantize_4bit(-weight, quant_type="nf4"))
    out.sum().backward()
    expected = F.dequantize_4bit(codes, state).sum(0)
    assert torch.allclose(x.grad[0], expected, rtol=1e-4, atol=1e-3)
