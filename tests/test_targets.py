"""Targets of real and of known chips."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bitsanywhere import targets
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.targets import Target, for_arch, known

ARCHS = [75, 80, 86, 87, 88, 89, 90, 100, 103, 107, 110, 120, 121]
KIB = 1024


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("BITSANYWHERE_TARGET", raising=False)
    targets._of_index.cache_clear()
    yield
    targets._of_index.cache_clear()


@pytest.fixture
def properties(monkeypatch):
    values = SimpleNamespace(
        major=8, minor=7, multi_processor_count=16, name="Orin", L2_cache_size=4 << 20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: values)
    return values


def test_of_a_device(properties):
    properties.shared_memory_per_block_optin = 166_912
    expected = Target("sm_87", 8, 7, 16, 166_912, 4 << 20, "Orin")
    assert Target.of(torch.device("cuda", 0)) == expected


def test_of_a_device_with_a_torch_that_does_not_tell_shared_memory(properties):
    assert Target.of(torch.device("cuda", 0)).shared_memory == 163 * KIB
    properties.major = 20
    assert Target.of(torch.device("cuda", 1)).shared_memory == 48 * KIB


def test_devices_are_told_apart_and_asked_once(properties):
    first = Target.of(torch.device("cuda", 0))
    properties.minor = 6
    assert Target.of(torch.device("cuda", 0)) is first
    assert Target.of(torch.device("cuda", 1)).arch == "sm_86"


def test_no_index_means_the_current_device(properties, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert Target.of(torch.device("cuda")) is Target.of(torch.device("cuda", 3))


def test_the_variable_names_a_known_target(properties, monkeypatch):
    monkeypatch.setenv("BITSANYWHERE_TARGET", "orin-nano")
    assert Target.of(torch.device("cuda", 0)) == known("orin-nano")


def test_another_value_of_the_variable_is_refused(properties, monkeypatch):
    monkeypatch.setenv("BITSANYWHERE_TARGET", "orin")
    with pytest.raises(InvalidArgumentError, match=r"BITSANYWHERE_TARGET='orin'.*\n.*orin-nano"):
        Target.of(torch.device("cuda", 0))


def test_a_cpu_has_no_target():
    with pytest.raises(InvalidArgumentError, match="CUDA"):
        Target.of(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "arch", "sms", "shared_kib"),
    [
        ("t4", "sm_75", 40, 64),
        ("a100", "sm_80", 108, 163),
        ("orin-nano", "sm_87", 8, 163),
        ("agx-orin", "sm_87", 16, 163),
        ("l4", "sm_89", 58, 99),
        ("h100", "sm_90", 132, 227),
        ("rtx5090", "sm_120", 170, 99),
    ],
)
def test_known_targets(name, arch, sms, shared_kib):
    target = known(name)
    assert (target.arch, target.sm_count) == (arch, sms)
    assert target.shared_memory == shared_kib * KIB
    assert target.arch == f"sm_{target.major}{target.minor}"


def test_unknown_names_are_refused():
    with pytest.raises(InvalidArgumentError, match="orin-nano"):
        known("orin")


@pytest.mark.parametrize("number", ARCHS)
def test_every_architecture_has_targets(number):
    found = for_arch(f"sm_{number}")
    assert found
    for target in found:
        assert target.arch == f"sm_{number}"
        assert 10 * target.major + target.minor == number
        assert target.shared_memory >= 48 * KIB


def test_both_orins_are_targets_of_sm_87():
    assert {target.name for target in for_arch("sm_87")} == {"orin-nano", "agx-orin"}
