"""Fixtures of the CPU backend's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("numba")

from bitsanywhere.backends.cpu import common, compiler, int8_product, matmul
from bitsanywhere.backends.cpu.machine import Machine, host, levels_of


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch.empty comes filled with NaN or the largest integer, so what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=levels_of(host().level))
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the kernels of each feature level that this processor can run."""
    machine = Machine.of(request.param)
    monkeypatch.setattr(compiler, "_LOADED", {})
    for module in (common, compiler, int8_product, matmul):
        monkeypatch.setattr(module, "host", lambda: machine)
    return request.param
