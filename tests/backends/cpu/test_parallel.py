"""Kernels on several threads: concurrent callers, forks, and every source of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bitsanywhere.backends.cpu import gemm_4bit, parallel, quantize_4bit

FORK = """
import os, signal
import torch
from bitsanywhere.backends.cpu import gemm_4bit, quantize_4bit
torch.set_num_threads(2)
weight, x = torch.randn(512, 512), torch.randn(5, 512)
packed, absmax = quantize_4bit.run(weight, 64, "nf4", torch.uint8)
want = gemm_4bit.run(x, packed, [512, 512], absmax, 64, "nf4")
child = os.fork()
if child == 0:
    # A child that hangs ends by the alarm, with another status.
    signal.alarm(60)
    again, _ = quantize_4bit.run(weight, 64, "nf4", torch.uint8)
    got = gemm_4bit.run(x, packed, [512, 512], absmax, 64, "nf4")
    # torch's own parallel operations hang in a child, so numpy compares.
    same = (again.numpy() == packed.numpy()).all() and (got.numpy() == want.numpy()).all()
    os._exit(0 if same else 1)
print("child", os.waitpid(child, 0)[1])
print("parent", torch.equal(gemm_4bit.run(x, packed, [512, 512], absmax, 64, "nf4"), want))
"""


@pytest.fixture
def several_threads():
    """torch set to 4 threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def work(seed: int) -> torch.Tensor:
    """A quantized weight times a few activations."""
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(300, 512, generator=generator), torch.randn(3, 512, generator=generator)
    packed, absmax = quantize_4bit.run(weight, 64, "nf4", torch.uint8)
    return gemm_4bit.run(x, packed, [300, 512], absmax, 64, "nf4")


def test_concurrent_callers_get_their_own_results(several_threads):
    want = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, expected in zip(pool.map(work, range(8)), want):
                assert torch.equal(got, expected)


def test_python_threads_do_as_well(several_threads, monkeypatch):
    want = work(1)
    monkeypatch.setattr(parallel, "_team", lambda: parallel._python_threads)
    assert torch.equal(work(1), want)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(got, want) for got in pool.map(work, [1] * 20))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/maps")
def test_threads_come_from_torchs_pool():
    assert parallel._openmp() is not None


def test_more_threads_than_tasks(several_threads):
    torch.set_num_threads(16)
    x = torch.randn(100)
    packed, _ = quantize_4bit.run(x, 64, "nf4", torch.uint8)
    torch.set_num_threads(1)
    assert torch.equal(quantize_4bit.run(x, 64, "nf4", torch.uint8)[0], packed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_works_alone():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["child", "0", "parent", "True"]
