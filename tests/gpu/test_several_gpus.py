"""Tensors on a GPU that is not the current one: kernels are loaded and launched where they are."""

from __future__ import annotations

import pytest
import torch

import bitsanywhere as bnb
from bitsanywhere import functional as F

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(params=[("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")], ids=lambda p: p[1])
def devices(request):
    """The current device and the one to work on."""
    current, other = map(torch.device, request.param)
    with torch.cuda.device(current):
        yield current, other
        assert torch.cuda.current_device() == current.index


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_4bit_linear(devices, nested, rows):
    weight = torch.randn(320, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    results = []
    for device in devices:
        codes, state = F.quantize_4bit(
            weight.to(device), quant_type="nf4", compress_statistics=nested
        )
        out = bnb.matmul_4bit(x.to(device), codes.t(), state)
        assert out.device == device
        results.append((codes.cpu(), F.dequantize_4bit(codes, state).cpu(), out.cpu()))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_blockwise(devices):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    results = []
    for device in devices:
        codes, state = F.quantize_blockwise(x.to(device), blocksize=256)
        results.append((codes.cpu(), F.dequantize_blockwise(codes, state).cpu()))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_8bit_linear(devices):
    weight = torch.randn(320, 256, generator=torch.Generator().manual_seed(3)).half()
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(4)).half()
    x[:, 7] = 20
    results = []
    for device in devices:
        layer = bnb.nn.Linear8bitLt(256, 320, bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        with torch.no_grad():
            results.append(layer.to(device)(x.to(device)).cpu())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["AdamW8bit", "AdamW", "Lion8bit", "PagedAdamW8bit"])
def test_optimizers_with_parameters_on_both(devices, kind):
    start = torch.randn(5000, generator=torch.Generator().manual_seed(5))
    gradient = torch.randn(5000, generator=torch.Generator().manual_seed(6))
    both = [torch.nn.Parameter(start.to(device)) for device in devices]
    optimizer = getattr(bnb.optim, kind)(both, lr=1e-2)
    for _ in range(3):
        for parameter in both:
            parameter.grad = gradient.to(parameter.device)
        optimizer.step()
    assert not torch.equal(both[0].detach().cpu(), start)
    torch.testing.assert_close(both[0].cpu(), both[1].cpu(), rtol=0, atol=0)
