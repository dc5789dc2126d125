"""Records test results for the support matrix (`bitsanywhere matrix`).

    pytest -p tests.support.recording --record-support src/bitsanywhere/arch/support.json \\
        tests/backends/cuda tests/gpu

Two kinds of tests count: those under ``tests/backends/cuda`` with a parameter ``arch`` such as
"sm_87" (every kernel compiled for it, no GPU needed), and those marked ``gpu``, for the
architecture of the GPU that they ran on. Records of other machines in the file are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bitsanywhere.arch.support import COMPILED, RUN, Record, load, merged, save
from bitsanywhere.version import __version__

_counts: Counter[tuple[str, str, str, str]] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-support", type=Path, metavar="FILE", help=__doc__.splitlines()[0])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.outcome in ("passed", "failed"):
        kind = _kind(item)
        if kind is not None:
            _counts[(*kind, report.outcome)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--record-support")
    if path is None or not _counts:
        return
    kinds = sorted({key[:3] for key in _counts})
    new = [
        Record(*kind, _counts[(*kind, "passed")], _counts[(*kind, "failed")], __version__)
        for kind in kinds
    ]
    save(merged(load(path) if path.exists() else (), new), path)


def _kind(item: pytest.Item) -> tuple[str, str, str] | None:
    """Architecture, how and by what; None for a test that says nothing of an architecture."""
    if item.get_closest_marker("gpu"):
        # those of the audit launch fixtures, not our kernels
        return None if "tests/arch/" in item.path.as_posix() else _gpu()
    callspec = getattr(item, "callspec", None)
    arch = str(callspec.params.get("arch", "")) if callspec else ""
    if "backends/cuda" in item.path.as_posix() and re.fullmatch(r"sm_\d{2,3}", arch):
        return arch, COMPILED, _compiler()
    return None


@cache
def _gpu() -> tuple[str, str, str] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    from bitsanywhere.backends.cuda.jit.driver import Driver

    major, minor = Driver().version
    arch = f"sm_{properties.major}{properties.minor}"
    return arch, RUN, f"{properties.name}, driver of CUDA {major}.{minor}"


@cache
def _compiler() -> str:
    from bitsanywhere.backends.cuda.jit import nvrtc

    major, minor = nvrtc.find().version
    return f"NVRTC {major}.{minor}"
