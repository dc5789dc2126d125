"""optimizer_rules.cuh, compiled by the host's g++, against ops/optimizer_rules.py; what the
launchers hand to the kernels; and the shared memory they ask for."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitsanywhere.backends import cuda
from bitsanywhere.backends.cuda import optimizer_tensors, optimizer_update_8bit_blockwise
from bitsanywhere.backends.cuda.optimizer_tensors import MOST_TENSORS, NUMBERS, packed_settings
from bitsanywhere.ops.optimizer_rules import RULES, Settings, apply, clip
from bitsanywhere.targets import known

HEADERS = Path(cuda.__file__).parent

WRAPPERS = """
#include <cmath>
#include "optimizer_rules.cuh"

extern "C" long settings_bytes() { return sizeof(Settings); }
extern "C" void update(int rule, const float* g, float* p, float* first, float* slow, float* second,
                       float* measured, float factor, const Settings* h, long n) {
  for (long i = 0; i < n; i++) {
    State state = {first[i], slow[i], second[i]};
    float u = step(rule, g[i], p[i], state, *h);
    bool kept = counts(g[i], *h);
    measured[i] = kept ? u : 0.0f;
    if (!kept) continue;
    p[i] = shifted(p[i], u, h->times * factor, *h);
    first[i] = state.first, slow[i] = state.slow, second[i] = state.second;
  }
}
"""
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    """The wrappers as a shared library."""
    folder = tmp_path_factory.mktemp("host")
    source, library = folder / "rules.cpp", folder / "rules.so"
    source.write_text(WRAPPERS)
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def settings(**changes) -> Settings:
    """Numbers that no two of are alike."""
    return replace(Settings(0.9, 0.97, 0.995, 4.0, 1e-6, 0.1, 3, 0.02, 0.5, False), **changes)


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    """Address of a tensor's data."""
    return ctypes.c_void_p(x.data_ptr())


@needs_compiler
@pytest.mark.parametrize(
    "changes",
    [{}, {"step": 1}, {"skip_zeros": True}, {"weight_decay": 0.0}, {"step": 1000, "eps": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES)
def test_rules_are_the_references(host, rule, changes):
    n, h = 5000, settings(**changes)
    generator = torch.Generator().manual_seed(n)
    g, p, first, slow, second = (torch.randn(n, generator=generator) for _ in range(5))
    second, first = second.abs(), first if rule not in ("rmsprop", "adagrad") else first.abs()
    g[:7] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-30, 1e30])
    state1 = torch.stack((first, slow)) if RULES[rule].rows == 2 else first.clone()
    state2 = second.clone() if RULES[rule].states == 2 else None
    _, _, measured, _ = apply(rule, g, p, state1, state2, h)
    factor = clip(0.01, 3.0, measured.nan_to_num(0.0, 0.0, 0.0).norm().item())
    expected_p, expected1, _, expected2 = apply(rule, g, p, state1, state2, h, factor)

    assert host.settings_bytes() == len(packed_settings(rule, h))
    got_measured = torch.full_like(p, float("nan"))
    host.update(
        NUMBERS[rule], pointer(g), pointer(p), pointer(first), pointer(slow), pointer(second),
        pointer(got_measured), ctypes.c_float(factor), packed_settings(rule, h), ctypes.c_long(n),
    )  # fmt: skip
    got1 = torch.stack((first, slow)) if RULES[rule].rows == 2 else first
    if RULES[rule].decoupled or h.weight_decay == 0:
        assert torch.equal(got1, expected1)
    else:
        torch.testing.assert_close(got1, expected1, rtol=3e-7, atol=0)
    if expected2 is not None:
        assert torch.equal(second, expected2)
    torch.testing.assert_close(p, expected_p, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(got_measured, measured, rtol=1e-6, atol=1e-6)
    assert factor < 1


def test_every_rule_has_a_number():
    assert set(NUMBERS) == set(RULES)
    for name, other in (("lamb", "adam"), ("lars", "momentum")):
        assert NUMBERS[name] == NUMBERS[other]
        assert RULES[name].move is RULES[other].move


def rows_of(table: bytes) -> list[tuple[int, ...]]:
    """The rows of a table: six addresses, elements, blocks before, full blocks in vectors."""
    return list(struct.iter_unpack("<7qII", table))


def tables(rule, g, p, *states) -> list[tuple[bytes, int]]:
    """The tables and their numbers of blocks, one a launch."""
    made = optimizer_tensors.Tables(rule, p, *states)
    return list(zip(made.fill(optimizer_tensors.addresses(g)), made.blocks, strict=True))


def test_tables_describe_the_tensors():
    sizes = (1, 0, 256, 1000, 513)
    p = [torch.zeros(n + 8, dtype=torch.bfloat16)[:n] for n in sizes]
    p[3] = torch.zeros(1001, dtype=torch.bfloat16)[1:]
    g, state1, state2 = ([torch.zeros(n) for n in sizes] for _ in range(3))
    absmax = [torch.zeros(4) for _ in sizes]
    ((table, blocks),) = tables(0, g, p, state1, state2, absmax, absmax)
    rows = rows_of(table)
    assert len(rows) == 5
    used = [0, 2, 3, 4]
    for row, i in zip(rows, used):
        pointers = [x[i].data_ptr() for x in (g, p, state1, state2, absmax, absmax)]
        assert list(row[:7]) == [*pointers, sizes[i]]
    assert [row[7] for row in rows] == [0, 1, 2, 6, blocks]
    assert blocks == 9
    # The fourth tensor is not aligned.
    assert [row[8] for row in rows[:4]] == [0, 1, 0, 2]


def test_tables_are_filled_anew_each_step():
    """What one step's gradients were leaves no trace in the next one's."""
    p = [torch.zeros(n) for n in (512, 0, 300, 256)]
    whole = [2, 1, 1]
    made = optimizer_tensors.Tables(0, p, p, p)
    for shift, expected in ((0, whole), (4, [0, 1, 0]), (0, whole)):
        g = [4096 + shift, 1, 8192, 16384 + shift]
        (table,) = made.fill(g)
        rows = rows_of(table)
        assert [row[0] for row in rows] == [g[0], g[2], g[3], 0]
        assert [row[7] for row in rows] == [0, 2, 4, 5]
        assert [row[8] for row in rows[:3]] == expected


def test_the_second_average_must_be_aligned_too():
    for count, whole in ((1000, 3), (1001, 0)):
        p, state = torch.zeros(count), torch.zeros(2, count)
        ((table, _),) = tables(1, [p], [p], [state], [p])
        assert rows_of(table)[0][8] == whole


def test_many_tensors_take_several_tables():
    count = 2 * MOST_TENSORS + 3
    p = [torch.zeros(300) for _ in range(count)]
    made = tables(5, p, p, p, [])
    assert [blocks for _, blocks in made] == [2 * MOST_TENSORS] * 2 + [6]
    addresses = [row[1] for table, _ in made for row in rows_of(table)[:-1]]
    assert addresses == [x.data_ptr() for x in p]
    # With the other parameters a table fits what any driver takes.
    assert max(len(table) for table, _ in made) + len(packed_settings("lion", settings())) <= 4064


def test_nothing_is_launched_for_empty_tensors():
    p = [torch.zeros(0)]
    assert tables(0, p, p, p, p) == []


@pytest.mark.parametrize("target", ["t4", "rtx3090", "orin-nano", "h100", "rtx5090"])
def test_tables_of_codes_fit_the_chip(target):
    chip = known(target)
    for rule in set(NUMBERS.values()):
        config = optimizer_update_8bit_blockwise.choose(rule, chip)
        assert config.shared_memory <= chip.shared_memory
        # More would not help: shared memory has 32 banks.
        assert config.copies == 32 or 2 * config.shared_memory > chip.shared_memory
