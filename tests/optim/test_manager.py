"""`GlobalOptimManager`: settings of single parameters."""

from __future__ import annotations

import gc

import pytest
import torch

from bitsanywhere import optim
from bitsanywhere.errors import InvalidArgumentError


def parameter(seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(70, 70, generator=generator))
    p.grad = torch.randn(70, 70, generator=generator)
    return p


@pytest.fixture(autouse=True)
def manager():
    manager = optim.GlobalOptimManager.get_instance()
    manager.initialize()
    yield manager
    manager.initialize()


def test_there_is_one(manager):
    assert optim.GlobalOptimManager.get_instance() is manager
    with pytest.raises(InvalidArgumentError, match="get_instance"):
        optim.GlobalOptimManager()


def test_single_parameters(manager):
    a, b, c = (parameter(seed=i) for i in range(3))
    manager.register_parameters([a, b, c])
    manager.override_config(a, "optim_bits", 32)
    manager.override_config([b, c], key_value_dict={"lr": 0.0})
    manager.override_config(c, "weight_decay", 0.5)
    start = b.detach().clone()
    optimizer = optim.AdamW8bit([a, b, c])
    optimizer.step()
    assert optimizer.state[a]["state1"].dtype == torch.float32
    assert optimizer.state[b]["state1"].dtype == torch.uint8
    assert torch.equal(b, start)
    assert optimizer.get_config(0, 2, optimizer.param_groups[0])["weight_decay"] == 0.5
    with pytest.raises(InvalidArgumentError):
        manager.override_config(a)


def test_modules(manager):
    """The weight counts that the module has at the first step."""
    embedding, linear = torch.nn.Embedding(100, 64), torch.nn.Linear(64, 100)
    manager.register_module_override(embedding, "weight", {"optim_bits": 32})
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    linear(embedding(torch.tensor([1, 2]))).sum().backward()
    optimizer = optim.Adam8bit([*embedding.parameters(), *linear.parameters()])
    optimizer.step()
    assert optimizer.state[embedding.weight]["state1"].dtype == torch.float32
    assert optimizer.state[linear.weight]["state1"].dtype == torch.uint8


def test_nothing_is_kept_alive(manager):
    linear = torch.nn.Linear(4, 4)
    manager.override_config(linear.weight, "optim_bits", 32)
    manager.register_module_override(linear, "bias", {"optim_bits": 32})
    del linear
    gc.collect()
    assert manager.pid2config == {}
    assert manager.overrides([]) == {}
    assert manager._modules == []
