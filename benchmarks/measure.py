"""How times are taken and written down."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "bitsandbytes", "numba", "numpy", "transformers", "peft", "trl")


def interleaved(
    calls: dict[str, Callable[[], Any]], seconds: float = 2.0, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Wall time of each call in milliseconds: {"median", "min"}.

    The calls take turns, round after round until every one has run ``rounds`` times and
    ``seconds`` have passed, so that a disturbance hits all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    start = time.perf_counter()
    while len(next(iter(times.values()))) < rounds or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - before) * 1e3)
    return {
        name: {"median": statistics.median(taken), "min": min(taken)}
        for name, taken in times.items()
    }


def environment(device: str) -> dict[str, Any]:
    """Device, versions and date, for the head of a result file."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": versions,
        "device": device,
    }
    if device == "cpu":
        facts["device"] = cpu_name()
        facts["threads"] = torch.get_num_threads()
    return facts


def cpu_name() -> str:
    """Model name and the vector extensions that matter here."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = dict(
        line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    flags = fields.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(known)})"


def write(name: str, content: dict[str, Any]) -> Path:
    """Writes ``results/name.json`` as a whole."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
    return path
