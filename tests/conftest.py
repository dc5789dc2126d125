"""Fixtures shared by all tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_tensors() -> dict[str, torch.Tensor]:
    """Codebooks and inputs of the golden cases."""
    return load_file(GOLDEN / "golden.safetensors")


def golden_cases(kind: str) -> list:
    """One pytest parameter for each golden case of ``kind``: its description."""
    cases = json.loads((GOLDEN / "golden.json").read_text())
    return [pytest.param(case, id=name) for name, case in cases.items() if case["kind"] == kind]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Fills the arguments ``golden_4bit`` and ``golden_8bit`` with the golden cases."""
    for argument, kind in (("golden_4bit", "4bit"), ("golden_8bit", "8bit_blockwise")):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, golden_cases(kind))


@pytest.fixture(params=["reference", "backend"])
def cpu_implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with the torch references and once with the CPU backend's kernels."""
    from bitsanywhere.ops import registry

    if request.param == "reference":
        monkeypatch.setattr(registry, "load_backend", lambda device: ({}, None))
    else:
        kernels, problem = registry.load_backend("cpu")
        if problem is not None:
            pytest.skip(problem)
        assert kernels
    return request.param
