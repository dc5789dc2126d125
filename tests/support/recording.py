"""Records test results for the support matrix (`bitsanywhere matrix`).

    python -m pytest -m gpu -p tests.support.recording --record-support h100.json tests
    make matrix                    # every kernel for every architecture
    make matrix RECORDS=h100.json  # and what was recorded on another machine

Two kinds of tests count: ``test_everything_compiles`` with its parameter ``arch`` (every kernel
compiled for it, no GPU needed), and those marked ``gpu``, for the architecture of the GPU that they
ran on. Records of other machines in the file are kept.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bitsanywhere.arch.support import Record

# What is tested is imported in functions: `-p` loads this file before pytest sets `pythonpath`.
SUPPORT = Path(__file__).parents[2] / "src" / "bitsanywhere" / "arch" / "support.json"
EVERY_KERNEL = "test_everything_compiles"
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
            # Goes with the report from a worker of xdist to the process that counts.
            report.user_properties.append(("support", kind))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, kind in report.user_properties:
        if name == "support":
            _counts[(*kind, report.outcome)] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--record-support")
    if path is None or hasattr(session.config, "workerinput"):
        return
    if not _counts:
        print("\nno test that says something of an architecture ran: nothing is recorded")
        return
    from bitsanywhere.arch.support import Record, load
    from bitsanywhere.version import __version__

    kinds = sorted({key[:3] for key in _counts})
    new = [
        Record(*kind, _counts[(*kind, "passed")], _counts[(*kind, "failed")], __version__)
        for kind in kinds
    ]
    save(merged(load(path) if path.exists() else (), new), path)


def _kind(item: pytest.Item) -> tuple[str, str, str] | None:
    """Architecture, how and by what; None for a test that says nothing of an architecture."""
    from bitsanywhere.arch.support import COMPILED

    if item.get_closest_marker("gpu"):
        # those of the audit launch fixtures, not our kernels
        return None if "tests/arch/" in item.path.as_posix() else _gpu()
    if getattr(item, "originalname", "") == EVERY_KERNEL:
        return f"sm_{item.callspec.params['arch']}", COMPILED, _compiler()
    return None


@cache
def _gpu() -> tuple[str, str, str] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    from bitsanywhere.arch.support import RUN
    from bitsanywhere.backends.cuda.jit.driver import Driver

    properties = torch.cuda.get_device_properties(0)
    major, minor = Driver().version
    arch = f"sm_{properties.major}{properties.minor}"
    return arch, RUN, f"{properties.name}, driver of CUDA {major}.{minor}"


@cache
def _compiler() -> str:
    from bitsanywhere.backends.cuda.jit import nvrtc

    major, minor = nvrtc.find().version
    return f"NVRTC {major}.{minor}"


def merged(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Old and new records; a new one replaces the old one of the same kind and machine."""
    found = {(int(each.arch[3:]), each.how, each.by): each for each in (*old, *new)}
    return [found[key] for key in sorted(found)]


def save(records: Iterable[Record], path: Path) -> None:
    """Write records as the file that `bitsanywhere.arch.support.load` reads."""
    content = {"records": [asdict(each) for each in records]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def merge(paths: Sequence[str], into: Path = SUPPORT) -> None:
    """Adds records that test runs on other machines wrote to those that ship."""
    from bitsanywhere.arch.support import load

    records = load(into)
    for path in paths:
        records = merged(records, load(Path(path)))
    save(records, into)


if __name__ == "__main__":
    merge(sys.argv[1:])
