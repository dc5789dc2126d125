"""The order of ways, as a pure function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitsanywhere.backends.cuda.jit.plan import Way, runs_on, ways

CUDA_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
CUDA_12_6 = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90)


@pytest.mark.parametrize(
    ("chip", "archs", "expected"),
    [
        (87, CUDA_12_6, "sm_87"),
        (87, CUDA_13, "sm_87"),
        (88, CUDA_12_6, "compute_87"),
        (121, CUDA_12_6, "compute_90"),
        (101, CUDA_13, "compute_100"),
        (200, CUDA_13, "compute_121"),
    ],
)
def test_nvrtc_makes_machine_code_or_the_highest_ptx(chip, archs, expected):
    assert ways(chip, archs) == (Way("nvrtc", expected),)


def test_a_chip_below_all_architectures_has_no_way():
    assert ways(70, CUDA_13) == ()


def test_packs_come_after_nvrtc_the_exact_architecture_first():
    assert ways(89, (89,), ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90")) == (
        Way("nvrtc", "sm_89"),
        Way("pack", "sm_89"),
        Way("pack", "sm_86"),
        Way("pack", "sm_80"),
    )


def test_tegra_shares_machine_code_with_nobody():
    assert ways(87, (), ("sm_80", "sm_86")) == ()
    assert ways(89, (), ("sm_87",)) == ()
    assert ways(87, (), ("sm_87",)) == (Way("pack", "sm_87"),)


def test_a_forced_architecture_is_the_only_way():
    assert ways(90, CUDA_13, ("sm_90",), "compute_87") == (Way("nvrtc", "compute_87"),)


@given(st.sampled_from(CUDA_13), st.sampled_from(CUDA_13))
def test_machine_code_never_crosses_majors_nor_goes_down(arch, chip):
    if runs_on(arch, chip):
        assert arch // 10 == chip // 10
        assert arch <= chip


@given(st.integers(50, 199), st.sets(st.integers(50, 199)))
def test_nothing_newer_than_the_chip_is_compiled(chip, archs):
    for way in ways(chip, archs):
        assert int(way.arch.split("_")[1]) <= chip
