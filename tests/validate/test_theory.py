"""The promised error against samples, and against a case that can be done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bitsanywhere import functional
from bitsanywhere.validate.theory import codebook, promised, relative_rms

ROWS = 4096


def measured(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def gaussian() -> torch.Tensor:
    return torch.randn(ROWS, 1024, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("quant_type", "blocksize"), [("nf4", 64), ("fp4", 64), ("nf4", 256), ("fp4", 32)]
)
def test_4bit_formats_keep_the_promise(gaussian, quant_type, blocksize, nested):
    packed, state = functional.quantize_4bit(
        gaussian, blocksize=blocksize, quant_type=quant_type, compress_statistics=nested
    )
    error = measured(functional.dequantize_4bit(packed, state), gaussian)
    assert error == pytest.approx(promised(quant_type, blocksize), rel=0.01)


def test_8bit_maps_keep_the_promise(gaussian):
    codes, state = functional.quantize_blockwise(gaussian, blocksize=256)
    error = measured(functional.dequantize_blockwise(codes, state), gaussian)
    assert error == pytest.approx(promised("dynamic8", 256), rel=0.01)


def test_rowwise_int8_keeps_the_promise(gaussian):
    scale = gaussian.abs().amax(dim=1, keepdim=True) / 127
    error = measured((gaussian / scale).round() * scale, gaussian)
    assert error == pytest.approx(promised("int8", 1024), rel=0.01)


def test_a_wrong_codebook_breaks_the_promise(gaussian):
    """One entry moved by 0.05 already shows: the line of 1 % is one that can be missed."""
    values = list(codebook("nf4"))
    values[9] += 0.05
    blocks = gaussian.view(-1, 64)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    middles = torch.tensor(codebook("nf4"))
    middles = (middles[1:] + middles[:-1]) / 2
    found = torch.tensor(values)[torch.bucketize(blocks / absmax, middles)] * absmax
    assert measured(found, blocks) > 1.01 * promised("nf4", 64)


def test_two_levels_by_hand():
    """Blocks of one value on the codebook (-1, 1) lose nothing; of (-1, 0.5), half of them half."""
    assert relative_rms((-1.0, 1.0), 1) == pytest.approx(0, abs=1e-12)
    # E[x^2] = 1 and the positive half is off by x / 2, so E[error^2] = 1 / 8
    assert relative_rms((-1.0, 0.5), 1) == pytest.approx(math.sqrt(1 / 8), rel=2e-3)


def test_finer_uniform_codebooks_reach_the_textbook_error():
    """With many levels the error of a uniform codebook is step / sqrt(12), step = 2 m / (k - 1)."""
    block, levels = 64, 1001
    values = tuple(-1 + 2 * i / (levels - 1) for i in range(levels))
    largest = torch.randn(200_000, block, generator=torch.Generator().manual_seed(0)).abs().amax(1)
    steps = largest.double() * 2 / (levels - 1)
    inner = (block - 1) / block
    expected = float((inner * steps**2 / 12).mean().sqrt())
    assert relative_rms(values, block) == pytest.approx(expected, rel=0.005)
