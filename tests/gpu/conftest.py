"""What the tests on a real GPU share; every one is marked ``gpu`` and skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="torch sees no CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty returns NaN (or the largest integer), so that what is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def kernels_not_references():
    """Fails at once if the CUDA backend did not load: the tests would test the references."""
    if torch.cuda.is_available():
        from bitsanywhere.ops import registry

        kernels, problem = registry.load_backend("cuda")
        assert kernels, problem
