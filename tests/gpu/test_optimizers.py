"""Optimizer kernels on a GPU: states bit-equal with the references, golden steps, captures."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bitsanywhere as bnb
from benchmarks.cases import DTYPES
from bitsanywhere import functional as F
from bitsanywhere import ops
from bitsanywhere.formats import create_dynamic_map, create_linear_map
from bitsanywhere.ops.optimizer_rules import RULES

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "optimizers.json").read_text())
SIZES = (1, 255, 256, 257, 100_003)
# beta1, beta2, beta3, alpha, eps
NUMBERS = (0.9, 0.99, 0.999, 5.0, 1e-8)
LR = 1e-2


class Run:
    """Tensors of one call of a multi-tensor op; `moved` copies them to a device."""

    def __init__(self, rule, dtype, bits, sizes, code=None):
        generator = torch.Generator().manual_seed(sum(sizes))
        kind = RULES[rule]
        self.rule, self.bits, self.two = rule, bits, kind.states == 2
        self.p = [torch.randn(n, generator=generator).to(dtype) for n in sizes]
        self.g = [torch.zeros_like(p) for p in self.p]
        state = torch.float32 if bits == 32 else torch.uint8
        self.state1 = [torch.zeros(kind.rows, n, dtype=state) for n in sizes]
        self.state2 = [torch.zeros(n, dtype=state) for n in sizes if self.two]
        blocks = [-(-n // 256) for n in sizes]
        self.absmax1 = [torch.zeros(kind.rows, n) for n in blocks]
        self.absmax2 = [torch.zeros(n) for n in blocks if self.two]
        self.maps = (create_dynamic_map() if code is None else code, create_dynamic_map(False))

    def moved(self, device):
        other = object.__new__(Run)
        for name, value in vars(self).items():
            if isinstance(value, (list, tuple)):
                value = type(value)(tensor.to(device, copy=True) for tensor in value)
            setattr(other, name, value)
        return other

    def arguments(self, step, weight_decay, scale, skip):
        scales = (self.absmax1, self.absmax2, self.maps[0], self.maps[1] if self.two else None)
        scales = scales if self.bits == 8 else ()
        beta1, beta2, beta3, alpha, eps = NUMBERS
        return (
            self.rule, self.g, self.p, self.state1, self.state2, *scales,
            beta1, beta2, beta3, alpha, eps, weight_decay, step, LR, scale, skip,
        )  # fmt: skip

    def op(self):
        if self.bits == 8:
            return ops.optimizer_update_8bit_blockwise_multi
        return ops.optimizer_update_32bit_multi

    def take_gradients(self, seed, zeros=0.0):
        generator = torch.Generator().manual_seed(seed)
        for g in self.g:
            fresh = torch.randn(g.shape, generator=generator)
            rare = torch.rand(g.shape, generator=generator)
            g.copy_(torch.where(rare < zeros, 0.0, fresh * (1e-3 + rare**8)))

    def states(self):
        return [*self.state1, *self.state2]

    def scales(self):
        return [*self.absmax1, *self.absmax2]


def assert_close(got, expected, dtype, lr=LR):
    """Parameters within the rounding of their dtype, as the last bits of an update may differ."""
    rtol = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(got.cpu(), expected, rtol=rtol, atol=lr * 1e-5)
    different = (got.cpu() != expected).sum().item()
    assert dtype == torch.float32 or different <= 1 + got.numel() // 100


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", RULES)
def test_many_tensors_as_the_reference(rule, bits, dtype):
    here = Run(rule, dtype, bits, (*SIZES, 0, *range(2, 60)))
    there = here.moved("cuda")
    for step in range(1, 4):
        here.take_gradients(step, zeros=0.1)
        for a, b in zip(there.g, here.g, strict=True):
            a.copy_(b)
        here.op().reference(*here.arguments(step, 0.0, 0.5, False))
        there.op()(*there.arguments(step, 0.0, 0.5, False))
    for got, expected in zip(there.states(), here.states(), strict=True):
        assert torch.equal(got.cpu(), expected)
    for got, expected in zip(there.scales(), here.scales(), strict=True):
        assert torch.equal(got.cpu(), expected)
    for got, expected in zip(there.p, here.p, strict=True):
        assert_close(got, expected, dtype)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", RULES)
def test_weight_decay_and_skipped_zeros(rule, bits):
    here = Run(rule, torch.float32, bits, (100_003,))
    there = here.moved("cuda")
    for step in range(1, 4):
        here.take_gradients(step, zeros=0.5)
        there.g[0].copy_(here.g[0])
        here.op().reference(*here.arguments(step, 0.1, 1.0, True))
        there.op()(*there.arguments(step, 0.1, 1.0, True))
    assert_close(there.p[0], here.p[0], torch.float32, lr=10 * LR if bits == 8 else LR)
    for got, expected in zip(there.states(), here.states(), strict=True):
        if bits == 8:
            assert (got.cpu() != expected).float().mean() < 1e-4
        else:
            torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", RULES)
def test_elements_without_a_finite_gradient_stay(rule, bits):
    here = Run(rule, torch.bfloat16, bits, (1000,))
    there = here.moved("cuda")
    for step in (1, 2):
        here.take_gradients(step)
        here.g[0][3], here.g[0][500], here.g[0][999] = float("nan"), float("inf"), -float("inf")
        there.g[0].copy_(here.g[0])
        start = here.p[0].clone()
        here.op().reference(*here.arguments(step, 0.1, 1.0, False))
        there.op()(*there.arguments(step, 0.1, 1.0, False))
        for index in (3, 500, 999):
            assert there.p[0][index].item() == start[index].item()
    assert_close(there.p[0], here.p[0], torch.bfloat16)
    assert not any(state.float().isnan().any() for state in there.states())


@pytest.mark.parametrize("name", ["linear", "crowded", "random"])
def test_other_codebooks(name):
    crowded = torch.cat((torch.linspace(-0.9, -0.89, 128), torch.linspace(0.7, 0.71, 128)))
    generator = torch.Generator().manual_seed(1)
    code = {
        "linear": create_linear_map(),
        "crowded": crowded,
        "random": torch.randn(256, generator=generator).sort().values,
    }[name]
    here = Run("lion", torch.float32, 8, (100_003,), code=code)
    there = here.moved("cuda")
    for step in (1, 2):
        here.take_gradients(step, zeros=0.1)
        there.g[0].copy_(here.g[0])
        here.op().reference(*here.arguments(step, 0.0, 1.0, False))
        there.op()(*there.arguments(step, 0.0, 1.0, False))
    assert (there.state1[0].cpu() != here.state1[0]).float().mean() < 1e-4
    assert torch.equal(there.absmax1[0].cpu(), here.absmax1[0])


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("offset", [1, 4, 8])
def test_unaligned_parameters(offset, bits):
    here = Run("adam", torch.bfloat16, bits, (5000,))
    there = here.moved("cuda")
    room = torch.zeros(5000 + offset, dtype=torch.bfloat16, device="cuda")
    there.p[0] = room[offset:].copy_(there.p[0])
    here.take_gradients(1)
    there.g[0].copy_(here.g[0])
    here.op().reference(*here.arguments(1, 0.0, 1.0, False))
    there.op()(*there.arguments(1, 0.0, 1.0, False))
    assert_close(there.p[0], here.p[0], torch.bfloat16)
    assert torch.equal(there.state1[0].cpu(), here.state1[0])
    assert not room[:offset].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_limited_norm(rule, dtype):
    n = 100_003
    here = Run(rule, dtype, 32, (n,))
    here.take_gradients(1)
    there = here.moved("cuda")
    sums = []
    for _ in range(2):
        trial = there.moved("cuda")
        unorm = torch.full((1,), 7.0, device="cuda")
        for run, scratch in ((here, torch.zeros(1)), (trial, unorm)):
            arguments = (
                rule, run.g[0], run.p[0], run.state1[0], run.state2[0] if run.two else None,
                scratch, 1e-3, 2.0, *NUMBERS, 0.0, 1, LR, 1.0, False,
            )  # fmt: skip
            if run is trial:
                ops.optimizer_update_32bit(*arguments)
            elif not sums:
                ops.optimizer_update_32bit.reference(*arguments)
        sums.append(unorm.item())
        assert_close(trial.p[0], here.p[0], dtype)
        assert torch.equal(trial.state1[0].cpu(), here.state1[0])
    assert sums[0] == sums[1] > 0


@pytest.mark.parametrize("bits", [8, 32])
def test_captured_and_on_another_stream(bits):
    here = Run("adam", torch.bfloat16, bits, (1000, 70_000))
    here.take_gradients(1)
    plain, captured = here.moved("cuda"), here.moved("cuda")
    plain.op()(*plain.arguments(1, 0.1, 1.0, False))
    plain.op()(*plain.arguments(1, 0.1, 1.0, False))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.op()(*captured.arguments(1, 0.1, 1.0, False))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.op()(*captured.arguments(1, 0.1, 1.0, False))
    graph.replay()
    for got, expected in zip([*captured.p, *captured.states()], [*plain.p, *plain.states()]):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    tensors = load_file(GOLDEN / "optimizers.safetensors")
    start, expected = tensors["start"], tensors[name]
    p = torch.nn.Parameter(start.cuda())
    optimizer = getattr(bnb.optim, name)([p], **CASES[name])
    for grad in tensors["grads"]:
        p.grad = grad.cuda()
        optimizer.step()
    off = (p.detach().cpu() - expected).abs()
    close = off <= 1e-6 * expected.abs().clamp(min=0.1)
    if "32bit" in name:
        assert close.all()
    else:
        assert (~close).sum() <= 4
        assert off.max() <= 0.02 * (expected - start).abs().max()


def step_of(optimizer, p, seed):
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).to(p)
    optimizer.step()


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedLion32bit", "AdEMAMix"])
def test_state_dicts_move_between_devices(name):
    make = getattr(bnb.optim, name)
    p = torch.nn.Parameter(torch.randn(400, 401, generator=torch.Generator().manual_seed(0)))
    first = make([p], lr=1e-2)
    step_of(first, p, 1)
    there = torch.nn.Parameter(p.detach().cuda())
    second = make([there], lr=1e-2)
    second.load_state_dict(first.state_dict())
    assert second.state[there]["state1"].is_cuda
    step_of(first, p, 2)
    step_of(second, there, 2)
    torch.testing.assert_close(there.detach().cpu(), p.detach(), rtol=1e-5, atol=1e-5)
    back = torch.nn.Parameter(there.detach().cpu())
    third = make([back], lr=1e-2)
    third.load_state_dict(second.state_dict())
    step_of(second, there, 3)
    step_of(third, back, 3)
    torch.testing.assert_close(there.detach().cpu(), back.detach(), rtol=1e-5, atol=1e-5)


def test_paged_tensors_move_and_are_freed():
    from bitsanywhere.backends.cuda import managed

    if managed.why_not(0) is not None:
        pytest.skip(managed.why_not(0))
    x = F.get_paged(1000, 1001, dtype=torch.bfloat16)
    assert x.is_paged
    assert x.page_deviceid == 0
    assert (x.device, x.shape, x.dtype) == (torch.device("cuda", 0), (1000, 1001), torch.bfloat16)
    assert x.is_contiguous()
    F.elementwise_func("fill", x, None, 3.0)
    F.prefetch_tensor(x, to_cpu=True)
    assert (x == 3).all()
    F.GlobalPageManager.get_instance().prefetch_all()
    y = x.view(-1)[7:].mul_(2)
    del x
    gc.collect()
    assert (y == 6).all()
    free = torch.cuda.mem_get_info()[0]
    size = min(free // 4, 8 << 30)
    large = F.get_paged(size, dtype=torch.uint8)
    F.fill(large, 5)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] < free
    del large
    gc.collect()
    # Half of it would be missed; other processes may take some meanwhile.
    assert torch.cuda.mem_get_info()[0] >= free - size // 2
    assert F.get_paged(0, 3).shape == (0, 3)


def test_paged_tensors_beyond_all_memory_are_refused():
    with pytest.raises(MemoryError, match="GiB left"):
        F.get_paged(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW32bit", "Lion8bit", "AdEMAMix8bit"])
def test_paged_optimizers_take_the_same_steps(name):
    start = torch.randn(500, 1001, device="cuda", dtype=torch.bfloat16)
    plain, paged = (torch.nn.Parameter(start.clone()) for _ in range(2))
    first = getattr(bnb.optim, name)([plain], lr=1e-2)
    second = getattr(bnb.optim, f"Paged{name}")([paged], lr=1e-2)
    for seed in range(3):
        step_of(first, plain, seed)
        step_of(second, paged, seed)
        F.GlobalPageManager.get_instance().prefetch_all(to_cpu=True)
    assert second.state[paged]["state1"].is_paged
    assert torch.equal(plain, paged)
