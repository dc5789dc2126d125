"""The optimizer kernels against the torch references, over odd sizes, dtypes and levels."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.formats import create_dynamic_map
from bitsanywhere.ops import registry
from bitsanywhere.ops.optimizer_rules import RULES

SIZES = (1, 15, 256, 257, 1000, 40_000)
NUMBERS = {
    "beta1": 0.9, "beta2": 0.99, "beta3": 0.999, "alpha": 5.0, "eps": 1e-8, "weight_decay": 0.1,
    "step": 3, "lr": 0.01, "gnorm_scale": 0.5, "skip_zeros": False,
}  # fmt: skip
SIGNED, UNSIGNED = create_dynamic_map(True), create_dynamic_map(False)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What is not in this list differs in the rule alone, or in the dtype alone, and is slow.
QUICK = {("adam", torch.float32), ("adam", torch.bfloat16), ("ademamix", torch.float32)}
CASES = [
    pytest.param(rule, dtype, marks=[] if (rule, dtype) in QUICK else pytest.mark.slow)
    for rule in RULES
    for dtype in DTYPES
]


class Problem:
    """Tensors for one call: a gradient, a parameter and states that have seen some steps."""

    def __init__(self, rule, n, dtype, bits, seed=0):
        generator = torch.Generator().manual_seed(seed + n)

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        facts = RULES[rule]
        self.rule, self.bits = rule, bits
        self.p, self.g = random(n).to(dtype), random(n).to(dtype)
        shape = (2, n) if facts.rows == 2 else (n,)
        first = random(*shape) * 0.1
        first = first.abs() if rule in ("rmsprop", "adagrad") else first
        second = [random(n).square() * 0.1] if facts.states == 2 else []
        self.states = [first, *second]
        if bits == 8:
            rows = [ops.quantize_blockwise(row, SIGNED, 256) for row in first.view(facts.rows, n)]
            codes = torch.stack([row[0] for row in rows]).view(first.shape)
            absmax = torch.stack([row[1] for row in rows])
            other = [ops.quantize_blockwise(x, UNSIGNED, 256) for x in second]
            self.states = [codes, *[x[0] for x in other]]
            self.absmax = [absmax, *[x[1] for x in other]]

    def tensors(self):
        return [self.p, *self.states, *(self.absmax if self.bits == 8 else [])]

    def single(self, **changes):
        """Runs the single-tensor op on clones and returns what it wrote."""
        n = {**NUMBERS, **changes}
        p, *states = [tensor.clone() for tensor in self.tensors()]
        two = len(self.states) == 2
        if self.bits == 32:
            ops.optimizer_update_32bit(
                self.rule, self.g, p, states[0], states[1] if two else None,
                torch.full((1,), float("nan")), n.get("max_unorm", 0.0), n.get("norm", 0.0),
                n["beta1"], n["beta2"], n["beta3"], n["alpha"], n["eps"], n["weight_decay"],
                n["step"], n["lr"], n["gnorm_scale"], n["skip_zeros"],
            )  # fmt: skip
        else:
            codes, absmax = states[: 1 + two], states[1 + two :]
            ops.optimizer_update_8bit_blockwise(
                self.rule, self.g, p, codes[0], codes[1] if two else None, n["beta1"], n["beta2"],
                n["beta3"], n["alpha"], n["eps"], n["step"], n["lr"], SIGNED,
                UNSIGNED if two else None, absmax[0], absmax[1] if two else None,
                n["weight_decay"], n["gnorm_scale"], n["skip_zeros"],
            )  # fmt: skip
        return [p, *states]


def multi(problems, **changes):
    """Runs the multi-tensor op on clones of all problems; what it wrote, problem by problem."""
    n = {**NUMBERS, **changes}
    clones = [[tensor.clone() for tensor in problem.tensors()] for problem in problems]
    columns = [list(column) for column in zip(*clones)]
    g, first = [problem.g for problem in problems], problems[0]
    two = len(first.states) == 2
    p, state1, state2 = columns[0], columns[1], columns[2] if two else []
    if first.bits == 32:
        ops.optimizer_update_32bit_multi(first.rule, g, p, state1, state2, *n.values())
    else:
        absmax = columns[2 + two :]
        ops.optimizer_update_8bit_blockwise_multi(
            first.rule, g, p, state1, state2, absmax[0], absmax[1] if two else [], SIGNED,
            UNSIGNED if two else None, *n.values(),
        )  # fmt: skip
    return clones


def reference(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "load_backend", lambda device: ({}, None))
        return call()


def same(problem, got, expected):
    """Floats within a few roundings, codes equal but for one in a thousand by one."""
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        if a.dtype == torch.uint8:
            off = (a.int() - b.int()).abs()
            assert off.max() <= 1
            assert (off > 0).sum() <= 1 + 1e-3 * off.numel()
        else:
            eps = torch.finfo(a.dtype).eps
            torch.testing.assert_close(a.float(), b.float(), rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(("rule", "dtype"), CASES)
def test_kernel_is_the_reference(rule, dtype, bits, monkeypatch):
    problems = [Problem(rule, n, dtype, bits) for n in SIZES]
    got = multi(problems)
    expected = reference(monkeypatch, lambda: multi(problems))
    for problem, a, b in zip(problems, got, expected, strict=True):
        assert a[0].numel() == 1 or not torch.equal(a[0], problem.p)
        same(problem, a, b)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", ["adam", "lion"])
def test_multi_is_single(rule, bits):
    """Bit for bit, whatever else is in the list; an empty tensor among them does no harm."""
    problems = [Problem(rule, n, torch.float32, bits) for n in (*SIZES, 0, 3)]
    for problem, got in zip(problems, multi(problems), strict=True):
        for a, b in zip(got, problem.single(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("bits", [8, 32])
def test_skipped_elements_stay(bits, cpu_implementation):
    problem = Problem("adam", 700, torch.float32, bits)
    problem.g[5:300:7] = 0.0
    problem.g[3], problem.g[260], problem.g[699] = float("nan"), float("inf"), -float("inf")
    bad = [3, 260, 699]
    plain, skipping = problem.single(), problem.single(skip_zeros=True)
    for result in (plain, skipping):
        assert torch.equal(result[0][bad], problem.p[bad])
        assert all(torch.isfinite(t.float()).all() for t in result)
    zeros = torch.arange(5, 300, 7)
    assert (plain[0][zeros] != problem.p[zeros]).all()
    assert torch.equal(skipping[0][zeros], problem.p[zeros])
    rest = problem.g.abs() > 0
    rest[bad] = False
    assert torch.equal(skipping[0][rest], plain[0][rest])
    if bits == 32:
        kept = torch.cat([zeros, torch.tensor(bad)])
        assert torch.equal(skipping[1][kept], problem.states[0][kept])
        assert torch.equal(skipping[2][kept], problem.states[1][kept])


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("lr", [0.01, 0.0, -0.01])
def test_skipped_parameters_keep_their_bits(bits, lr):
    """The sign of a zero among them, whatever the sign of the learning rate."""
    problem = Problem("adam", 600, torch.float32, bits)
    problem.g[:300], problem.g[300:] = 0.0, float("nan")
    problem.p[::3], problem.p[1::3] = -0.0, 0.0
    got = problem.single(lr=lr, skip_zeros=True)[0]
    assert torch.equal(got.view(torch.int32), problem.p.view(torch.int32))


@pytest.mark.parametrize("rule", ["adam", "lamb", "lars"])
def test_clipping(rule, cpu_implementation):
    """The update is as long as it may be, and points where it would have pointed."""
    problem = Problem(rule, 5000, torch.float32, 32)
    free = problem.single(weight_decay=0.0)[0] - problem.p
    norm = float(problem.p.norm())
    held = problem.single(weight_decay=0.0, max_unorm=0.02, norm=norm)[0] - problem.p
    factor = float(held.double().norm() / free.double().norm())
    n = NUMBERS
    times = n["lr"]
    if rule != "lars":
        times *= (1 - n["beta2"] ** 3) ** 0.5 / (1 - n["beta1"] ** 3)
    assert 0 < factor < 1
    torch.testing.assert_close(held, free * factor, rtol=1e-3, atol=1e-6)
    assert float(held.double().norm()) == pytest.approx(0.02 * norm * times, rel=1e-4)
    loose = problem.single(weight_decay=0.0, max_unorm=1e6, norm=norm)[0] - problem.p
    assert torch.equal(loose, free)


def test_every_level(level, monkeypatch):
    problems = [Problem("adam", n, torch.float32, 8) for n in (1, 300, 1000)]
    got = multi(problems)
    expected = reference(monkeypatch, lambda: multi(problems))
    for problem, a, b in zip(problems, got, expected, strict=True):
        same(problem, a, b)


def test_nothing_is_written_outside(monkeypatch):
    """Neighbours in memory keep their bytes, where a tensor ends in the middle of a vector."""
    for n in (1, 17, 255, 301):
        problem = Problem("adam", n, torch.float32, 8)
        wide = [torch.full((t.numel() + 64,), 77, dtype=t.dtype) for t in problem.tensors()]
        inner = [w[32 : 32 + t.numel()] for w, t in zip(wide, problem.tensors(), strict=True)]
        for part, tensor in zip(inner, problem.tensors(), strict=True):
            part.copy_(tensor.view(-1))
        problem.p, *rest = inner
        problem.states, problem.absmax = rest[:2], rest[2:]
        monkeypatch.setattr(torch.Tensor, "clone", lambda self: self)
        problem.single()
        monkeypatch.undo()
        for w in wide:
            assert (w[:32] == 77).all()
            assert (w[-32:] == 77).all()
