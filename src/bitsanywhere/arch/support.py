"""Our own support matrix: for each architecture, what tests compiled and what ran on hardware.

``support.json`` beside this file is written by test runs (``make matrix``, see
``tests/support/recording.py``), never by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bitsanywhere.arch.devices import DEVICES, find_device
from bitsanywhere.errors import InvalidArgumentError

COMPILED, RUN = "compiled", "run"
# Architectures below are out of reach: bitsanywhere compiles for 7.5 and up.
LOWEST = 75


@dataclass(frozen=True)
class Record:
    """What one test run says of one architecture.

    Attributes:
        arch: such as "sm_87".
        how: "compiled" (every kernel, no GPU) or "run" (on a GPU of this architecture).
        by: the compiler, or the GPU with its driver.
        passed, failed: how many tests.
        version: of bitsanywhere.
    """

    arch: str
    how: str
    by: str
    passed: int
    failed: int
    version: str


@dataclass(frozen=True)
class Row:
    """One line of the matrix."""

    arch: str
    devices: tuple[str, ...]
    compiled: tuple[Record, ...]
    run: tuple[Record, ...]


def load(path: Path | None = None) -> tuple[Record, ...]:
    """The records that ship, or those of a file.

    Raises:
        InvalidArgumentError: if the file holds something else.
    """
    place = path or resources.files(__package__ or "").joinpath("support.json")
    try:
        return tuple(Record(**each) for each in json.loads(place.read_text("utf-8"))["records"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidArgumentError(
            f"{path} holds no test records", str(error), "Write it with `make matrix`."
        ) from error


def rows(records: Iterable[Record]) -> tuple[Row, ...]:
    """The matrix: every architecture of a known device, and every one with a record."""
    listed = tuple(records)
    known = {f"sm_{each.arch}" for each in DEVICES if each.arch >= LOWEST}
    archs = sorted(known | {each.arch for each in listed}, key=_number)
    return tuple(
        Row(
            arch=arch,
            devices=tuple(each.title for each in DEVICES if each.arch == find_device(arch).arch),
            compiled=tuple(each for each in listed if (each.arch, each.how) == (arch, COMPILED)),
            run=tuple(each for each in listed if (each.arch, each.how) == (arch, RUN)),
        )
        for arch in archs
    )


def told(records: tuple[Record, ...]) -> str:
    """Records in words: what passed, where."""
    if not records:
        return "not tested"
    return "; ".join(_told(each) for each in records)


def as_dict(matrix: Iterable[Row]) -> dict[str, Any]:
    """The matrix as plain data."""
    return {"architectures": [asdict(each) for each in matrix]}


def _told(record: Record) -> str:
    passed = "every kernel" if record.how == COMPILED else f"{record.passed} tests"
    verdict = f"{record.failed} tests FAILED" if record.failed else passed
    return f"{verdict}, {record.by}, {record.version}"


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))
