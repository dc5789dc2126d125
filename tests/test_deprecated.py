"""igemm, batched_igemm and check_matmul compute, and warn."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere.errors import DtypeError, InvalidArgumentError


def codes(*shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() @ b.double()).int()


def call(function, *args, **options):
    with pytest.warns(FutureWarning, match=function.__name__):
        return function(*args, **options)


@pytest.mark.parametrize("swap_a", [False, True])
@pytest.mark.parametrize("swap_b", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_igemm(batch, swap_a, swap_b):
    """Two matrices, a batch with a matrix, two batches."""
    a, b = codes(*[3] * (batch > 0), 5, 33), codes(*[3] * (batch > 1), 33, 7)
    given_a = a.transpose(-1, -2).contiguous() if swap_a else a
    given_b = b.transpose(-1, -2).contiguous() if swap_b else b
    out = torch.full((*a.shape[:-1], 7), -5, dtype=torch.int32)
    result = call(F.igemm, given_a, given_b, out, swap_a, swap_b)
    assert result is out
    assert torch.equal(out, exact(a, b))
    shape = call(F.check_matmul, given_a, given_b, None, swap_a, swap_b)
    assert tuple(shape) == tuple(out.shape)
    if batch == 2:
        assert torch.equal(call(F.batched_igemm, given_a, given_b, None, swap_a, swap_b), out)


def test_gradient_of_a_weight():
    a, b = codes(3, 5, 8), codes(3, 5, 6)
    out = torch.zeros(8, 6, dtype=torch.int32)
    call(F.igemm, a, b, out)
    assert torch.equal(out, exact(a.view(15, 8).t(), b.view(15, 6)))


def test_bad_input():
    with pytest.raises(DtypeError, match=r"torch.float32"):
        call(F.check_matmul, codes(2, 3).float(), codes(3, 4), None, False, False)
    for a, b in (
        (codes(2, 3), codes(2, 4)),
        (codes(3), codes(3, 2)),
        (codes(2, 3), codes(1, 3, 2)),
    ):
        with pytest.raises(InvalidArgumentError, match="inner"):
            call(F.igemm, a, b)
    with pytest.raises(InvalidArgumentError, match="batch"):
        call(F.batched_igemm, codes(2, 3), codes(3, 4))
    with pytest.raises(InvalidArgumentError, match="out is"):
        call(F.igemm, codes(2, 3), codes(3, 4), torch.empty(2, 4))
