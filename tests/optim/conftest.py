"""Fixtures of the tests of steps by plan.

CPU tensors have no plans. Here they have: the ops' references stand for a backend that finds all
tensors at the addresses it was given, as a GPU's would.
"""

from __future__ import annotations

import ctypes

import pytest
import torch

from bitsanywhere import ops, optim
from bitsanywhere.ops import registry

NAMES = ("optimizer_update_32bit_multi", "optimizer_update_8bit_blockwise_multi")


def at(address: int, like: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that lies there."""
    if not like.numel():
        return torch.empty(like, dtype=dtype)
    raw = (ctypes.c_char * (like.numel() * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).view(like)


@pytest.fixture
def launches(monkeypatch) -> list[int]:
    """How many parameters each launch by plan had."""
    seen: list[int] = []

    def backend_kernel(op):
        def bind(device, name, p, *columns):
            assert all(x.device == device for x in p)
            looks = [[(x.data_ptr(), x.shape, x.dtype) for x in c] for c in (p, *columns)]

            def launch(g, *rest):
                seen.append(len(g))
                tensors = [[at(*look) for look in column] for column in looks]
                grads = [at(a, look[1], look[2]) for a, look in zip(g, looks[0], strict=True)]
                op.without_grad(name, grads, *tensors, *rest)

            return launch

        return registry.Kernel(run=op.without_grad, why_not=lambda *args: None, bind=bind)

    kernels = {name: backend_kernel(getattr(ops, name)) for name in NAMES}
    monkeypatch.setattr(registry, "load_backend", lambda device: (kernels, None))
    return seen


@pytest.fixture
def manager():
    manager = optim.GlobalOptimManager.get_instance()
    manager.initialize()
    yield manager
    manager.initialize()
