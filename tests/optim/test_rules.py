"""Each rule against float64 over 200 steps, in every dtype and with both kinds of state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bitsanywhere as bnb
from tests.optim.reference import Reference

STEPS, SHAPE = 200, (37, 45)
COMMON = {"lr": 1e-2, "weight_decay": 0.1}
RULES = {
    "adam": (bnb.optim.AdamW, {}),
    "momentum": (bnb.optim.SGD, {"momentum": 0.9, "lr": 1e-3}),
    "rmsprop": (bnb.optim.RMSprop, {"alpha": 0.95}),
    "adagrad": (bnb.optim.Adagrad, {"lr": 0.1}),
    "lion": (bnb.optim.Lion, {"betas": (0.9, 0.99), "lr": 1e-3}),
    "lars": (bnb.optim.LARS, {"momentum": 0.9, "max_unorm": 0.02}),
    "lamb": (bnb.optim.LAMB, {"max_unorm": 0.5}),
    "ademamix": (bnb.optim.AdEMAMix, {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0}),
}
# How far 8-bit states may lead from float64: RMS of the difference over that of the way gone.
WAY_8BIT = {"momentum": 0.02, "rmsprop": 0.02, "lion": 0.03, "lars": 0.01}
# lion goes a short way, beside which a float32 parameter's own rounding is large.
WAY_32BIT = {"lion": 1e-4}


def run(rule, dtype, bits):
    """The parameter after 200 steps, the float64 reference's, and the start."""
    make, own = RULES[rule]
    settings = {**COMMON, **own}
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(SHAPE, generator=generator).to(dtype)
    p = torch.nn.Parameter(start.clone())
    optimizer = make([p], optim_bits=bits, min_8bit_size=0, **settings)
    if "momentum" in settings:
        settings["betas"] = (settings["momentum"], 0.0)
    if "alpha" in settings and rule == "rmsprop":
        settings["betas"] = (settings["alpha"], 0.0)
    if bits == 8:
        settings["max_unorm"] = 0.0
    settings.setdefault("eps", 1e-10 if rule == "adagrad" else 1e-8)

    def rounding(x):
        return torch.from_numpy(x).to(dtype).double().numpy()

    reference = Reference(rule, start.double().numpy(), rounding, **settings)
    drift = torch.randn(SHAPE, generator=generator)
    for _ in range(STEPS):
        grad = (torch.randn(SHAPE, generator=generator) + drift).to(dtype)
        p.grad = grad
        optimizer.step()
        reference.step(grad.double().numpy())
    return p.detach().double().numpy(), reference.p, start.double().numpy()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("rule", RULES)
def test_float32(rule, cpu_implementation):
    got, expected, start = run(rule, torch.float32, 32)
    way = WAY_32BIT.get(rule, 1e-5) * rms(expected - start)
    assert rms(got - expected) <= way
    assert np.abs(got - expected).max() <= 20 * way


@pytest.mark.parametrize("rule", RULES)
def test_8bit_states(rule):
    got, expected, start = run(rule, torch.float32, 8)
    assert rms(got - expected) <= WAY_8BIT.get(rule, 0.05) * rms(expected - start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize(
    "rule",
    [pytest.param(r, marks=[] if r in ("adam", "lion") else pytest.mark.slow) for r in RULES],
)
def test_halves(rule, dtype, bits):
    """The parameter is rounded once a step, as the reference rounds it; no rounding is biased."""
    got, expected, start = run(rule, dtype, bits)
    way, error = rms(expected - start), got - expected
    assert rms(error) <= (2e-3 if bits == 32 else 1.5 * WAY_8BIT.get(rule, 0.05)) * way
    # What errors without a bias add up to by chance is no bias.
    assert abs(error.mean()) <= max(1e-3 * way, 3 * error.std() / error.size**0.5)
