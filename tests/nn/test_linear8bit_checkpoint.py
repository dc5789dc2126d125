"""Saving and loading of Linear8bitLt; what is damaged or hostile raises a CheckpointError."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from bitsanywhere import functional as F
from bitsanywhere.errors import BitsAnywhereError, CheckpointError
from bitsanywhere.nn import Linear8bitLt

N, K = 40, 96


def layer(inputs: int = K, outputs: int = N, **options) -> Linear8bitLt:
    torch.manual_seed(0)
    return Linear8bitLt(inputs, outputs, **({"has_fp16_weights": False} | options))


def inputs() -> torch.Tensor:
    return torch.randn(5, K, generator=torch.Generator().manual_seed(1))


def test_keys():
    module = layer().to("cpu")
    state = load(save(module.state_dict()))
    assert list(module.state_dict()) == ["weight", "bias", "SCB", "weight_format"]
    assert state["weight"].dtype == torch.int8
    assert state["SCB"].dtype == torch.float32
    assert state["SCB"].shape == (N,)
    assert state["weight_format"].dtype == torch.uint8
    assert state["weight_format"].shape == ()
    assert state["weight_format"] == 0
    assert set(layer().state_dict()) == {"weight", "bias"}
    assert "SCB" in module.state_dict(keep_vars=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("target", ["float", "quantized", "used", "meta"])
def test_round_trip(target, assign):
    module = layer().to("cpu").eval()
    module.weight.SCB.mul_(1.5)
    state = load(save(module.state_dict()))
    other = layer(device="meta") if target == "meta" else layer()
    if target in ("quantized", "used"):
        other.to("cpu")
    if target == "used":
        other.eval()(inputs())
    weight = other.weight
    if target == "meta" and not assign:
        with torch.no_grad():
            other.bias = torch.nn.Parameter(torch.empty(N))
    other.load_state_dict(state, assign=assign)
    for key, value in other.state_dict().items():
        assert torch.equal(value, module.state_dict()[key]), key
    assert torch.equal(other.eval()(inputs()), module(inputs()))
    if not assign and target != "meta":
        assert other.weight is weight
        other.weight.data.zero_()
        assert state["weight"].ne(0).any()


def test_float_checkpoint_into_a_layer_not_yet_quantized():
    weight = torch.randn(N, K)
    module = layer()
    module.load_state_dict({"weight": weight, "bias": torch.zeros(N)})
    module.to("cpu").eval()
    assert torch.equal(module.weight.data, F.int8_vectorwise_quant(weight.half())[0])


def test_within_a_model():
    first, second = (torch.nn.Sequential(layer(), layer(N, 7)) for _ in range(2))
    first.to("cpu")
    missing, unexpected = second.load_state_dict(first.state_dict())
    assert not missing
    assert not unexpected
    assert torch.equal(first.eval()(inputs()), second.eval()(inputs()))


def test_halved_statistics_are_read():
    state = layer().to("cpu").state_dict()
    state["SCB"] = state["SCB"].half()
    module = layer()
    module.load_state_dict(state)
    assert module.weight.SCB.dtype == torch.float32


HOSTILE = {
    "no SCB": lambda s: s.pop("SCB"),
    "no SCB, no format": lambda s: (s.pop("SCB"), s.pop("weight_format")),
    "short SCB": lambda s: s.update(SCB=s["SCB"][:-1]),
    "int SCB": lambda s: s.update(SCB=s["SCB"].int()),
    "meta SCB": lambda s: s.update(SCB=s["SCB"].to("meta")),
    "text SCB": lambda s: s.update(SCB="1.0"),
    "sparse SCB": lambda s: s.update(SCB=s["SCB"].to_sparse()),
    "float weight": lambda s: s.update(weight=s["weight"].float()),
    "truncated weight": lambda s: s.update(weight=s["weight"][:-1]),
    "flat weight": lambda s: s.update(weight=s["weight"].view(-1)),
    "uint8 weight": lambda s: s.update(weight=s["weight"].view(torch.uint8)),
    "format 1": lambda s: s.update(weight_format=torch.tensor(1, dtype=torch.uint8)),
    "format 2.0": lambda s: s.update(weight_format=torch.tensor(0.0)),
    "formats": lambda s: s.update(weight_format=torch.zeros(2, dtype=torch.uint8)),
    "text format": lambda s: s.update(weight_format="row"),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile(fault, quantized):
    state = dict(layer().to("cpu").state_dict())
    HOSTILE[fault](state)
    module = layer().to("cpu") if quantized else layer()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    if fault == "no SCB, no format" and not quantized:
        return
    with pytest.raises(CheckpointError):
        module.load_state_dict(state)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


def test_into_a_layer_whose_weight_stays_float():
    with pytest.raises(CheckpointError, match="has_fp16_weights"):
        layer(has_fp16_weights=True).load_state_dict(layer().to("cpu").state_dict())


def test_pre_hook_for_modules_of_a_programs_own():
    from bitsanywhere.nn.modules import maybe_rearrange_weight

    state = {"fc.weight_format": torch.tensor(0, dtype=torch.uint8), "fc.weight": None}
    maybe_rearrange_weight(state, "fc.", {}, True, [], [], [])
    assert set(state) == {"fc.weight"}
    state["fc.weight_format"] = torch.tensor(3)
    with pytest.raises(BitsAnywhereError, match="weight_format"):
        maybe_rearrange_weight(state, "fc.", {}, True, [], [], [])
