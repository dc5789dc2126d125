"""4-bit storage of arbitrary parameters, such as fused 3-D experts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from bitsanywhere import functional as F
from bitsanywhere.errors import CheckpointError, InvalidArgumentError
from bitsanywhere.nn.parametrize import (
    replace_parameter_4bit,
    replace_parameter_4bit_prequantized,
)


class Experts(torch.nn.Module):
    """Three experts in one 3-D parameter."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.gate_up_proj = torch.nn.Parameter(torch.randn(3, 32, 48, generator=generator))
        self.bias = torch.nn.Parameter(torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bk,enk->ebn", x, self.gate_up_proj) + self.bias


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_reads_as_the_dequantized_tensor(quant_type, compress):
    module = Experts()
    original = module.gate_up_proj.data.clone()
    replace_parameter_4bit(module, "gate_up_proj", compress, quant_type, blocksize=128)
    codes, state = F.quantize_4bit(
        original, blocksize=128, compress_statistics=compress, quant_type=quant_type
    )
    assert torch.equal(module.gate_up_proj, F.dequantize_4bit(codes, state))
    stored = sum(p.numel() * p.element_size() for p in module.parameters())
    assert stored < original.numel() * 4 / 7
    x = torch.randn(5, 48, requires_grad=True)
    module(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert module.bias.grad is not None


def test_save_and_load():
    module = Experts()
    replace_parameter_4bit(module, "gate_up_proj", compress_statistics=True)
    stored = load(save(module.state_dict()))
    assert {"gate_up_proj", "gate_up_proj.quant_state.bitsandbytes__nf4", "bias"} <= set(stored)
    other = Experts()
    other.gate_up_proj.data.normal_()
    replace_parameter_4bit(other, "gate_up_proj", compress_statistics=True)
    other.load_state_dict(stored)
    assert torch.equal(other.gate_up_proj, module.gate_up_proj)

    third = Experts()
    third.gate_up_proj = torch.nn.Parameter(stored["gate_up_proj"], requires_grad=False)
    stats = {k: v for k, v in stored.items() if k.startswith("gate_up_proj.")}
    replace_parameter_4bit_prequantized(third, "gate_up_proj", stats, torch.device("cpu"))
    assert torch.equal(third.gate_up_proj, module.gate_up_proj)


def test_refuses():
    with pytest.raises(InvalidArgumentError, match="gate_up_proj, bias"):
        replace_parameter_4bit(Experts(), "down_proj")
    module = Experts()
    replace_parameter_4bit(module, "gate_up_proj")
    stats = {k: v for k, v in module.state_dict().items() if k.startswith("gate_up_proj.")}
    with pytest.raises(InvalidArgumentError, match="holds"):
        replace_parameter_4bit_prequantized(Experts(), "bias", stats, torch.device("cpu"))
    del stats["gate_up_proj.absmax"]
    with pytest.raises(CheckpointError, match="absmax is missing"):
        replace_parameter_4bit_prequantized(Experts(), "bias", stats, torch.device("cpu"))


def test_an_exception_in_a_forward_leaves_nothing_behind():
    module = Experts()
    replace_parameter_4bit(module, "gate_up_proj")
    with pytest.raises(RuntimeError):
        module(torch.randn(5, 47))
    before = module.gate_up_proj.clone()
    other = Experts()
    other.gate_up_proj.data.neg_()
    replace_parameter_4bit(other, "gate_up_proj")
    module.load_state_dict(other.state_dict())
    assert torch.equal(module.gate_up_proj, other.gate_up_proj)
    assert not torch.equal(module.gate_up_proj, before)
    assert torch.nn.utils.parametrize._cache_enabled == 0


def test_is_dequantized_once_a_forward(monkeypatch):
    from bitsanywhere.nn import parametrize

    calls = []
    original = parametrize.dequantize_4bit
    monkeypatch.setattr(
        parametrize, "dequantize_4bit", lambda *args: calls.append(1) or original(*args)
    )

    class Loop(Experts):
        def forward(self, x):
            return sum(x @ self.gate_up_proj[i].t() for i in range(3))

    module = Loop()
    replace_parameter_4bit(module, "gate_up_proj")
    calls.clear()
    module(torch.randn(2, 48))
    assert len(calls) == 1


def test_loading_another_shape_is_refused_and_changes_nothing():
    module, other = Experts(), torch.nn.Module()
    other.gate_up_proj = torch.nn.Parameter(torch.randn(48, 32, 3))
    for each in (module, other):
        replace_parameter_4bit(each, "gate_up_proj")
    before = module.gate_up_proj.clone()
    with pytest.raises(CheckpointError, match="needs"):
        module.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(module.gate_up_proj, before)
