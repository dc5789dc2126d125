"""Optimizer steps on an NVIDIA GPU beside bitsandbytes, torch's fused AdamW and the copy bandwidth.

    python -m benchmarks.optimizers_gpu [--out FOLDER]

Times are of one `step()`, by events around a row of steps: those of the host where it is slower.
Writes optimizers_gpu_<device>.json.
"""

from __future__ import annotations

import os

os.environ["BITSANYWHERE_BACKEND"] = "0"

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import bitsanywhere as ours
from benchmarks.gpu import copy_bandwidth
from benchmarks.measure import RESULTS, environment

try:
    import bitsandbytes as peer
except ImportError:
    peer = None

LARGE = 1 << 28
# A model of 300 tensors, 421 million parameters.
MANY = (1024,) * 100 + (16384,) * 100 + (1 << 20,) * 80 + (1 << 24,) * 20
# Bytes that an update of one bfloat16 parameter moves: gradient, parameter and states.
BYTES = {"AdamW8bit": 10, "Lion8bit": 8, "AdEMAMix8bit": 12, "AdamW": 22, "Lion": 14}
SETTINGS = {"lr": 1e-4, "weight_decay": 0.01}


def make(name: str, module: Any, params: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer of a library, or torch's fused AdamW."""
    if module is torch:
        return torch.optim.AdamW(params, fused=True, **SETTINGS)
    settings = {**SETTINGS, **({"min_8bit_size": 0} if "8bit" in name else {})}
    return getattr(module.optim, name)(params, **settings)


def parameters(sizes: Sequence[int]) -> list[torch.nn.Parameter]:
    """bfloat16 parameters with gradients."""
    made = []
    for size in sizes:
        p = torch.nn.Parameter(torch.randn(size, device="cuda", dtype=torch.bfloat16))
        p.grad = torch.randn_like(p) * 1e-2
        made.append(p)
    return made


def timed(step: Callable[[], Any], steps: int, rounds: int = 7) -> tuple[float, float]:
    """Seconds a step on the GPU, and of the host before it may go on; medians over rounds."""
    for _ in range(3):
        step()
    times, host = [], []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        before = time.perf_counter()
        for _ in range(steps):
            step()
        host.append((time.perf_counter() - before) / steps)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / steps)
    return statistics.median(times), statistics.median(host)


def measured(name: str, sizes: Sequence[int], steps: int, bandwidth: float) -> dict[str, Any]:
    """One row: milliseconds and fractions of the copy bandwidth of each library."""
    libraries = {"bitsanywhere": ours} | ({"bitsandbytes": peer} if peer is not None else {})
    if name in ("AdamW8bit", "AdamW"):
        libraries["torch fused AdamW"] = torch
    row: dict[str, Any] = {
        "case": f"{name}, {len(sizes)} bfloat16 tensors",
        "parameters": sum(sizes),
        "bytes": BYTES[name] * sum(sizes),
        "milliseconds": {},
        "host_milliseconds": {},
        "fraction": {},
    }
    params = parameters(sizes)
    for library, module in libraries.items():
        optimizer = make(name, module, params)
        seconds, host = timed(optimizer.step, steps)
        row["milliseconds"][library] = seconds * 1e3
        row["host_milliseconds"][library] = host * 1e3
        if module is not torch:
            row["fraction"][library] = row["bytes"] / seconds / bandwidth
        optimizer.state.clear()
        torch.cuda.empty_cache()
    return row


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    out = parser.parse_args().out
    torch.manual_seed(0)
    name = torch.cuda.get_device_name()
    bandwidth = copy_bandwidth()
    rows: list[dict[str, Any]] = []
    content = {
        "environment": environment(name),
        "copy_bandwidth_bytes_per_second": bandwidth,
        "rows": rows,
    }
    path = out / f"optimizers_gpu_{name.lower().replace(' ', '_')}.json"
    cases = [(case, (LARGE,), 15) for case in BYTES]
    cases += [(case, MANY, 10) for case in ("AdamW8bit", "AdamW")]
    for case, sizes, steps in cases:
        rows.append(measured(case, sizes, steps, bandwidth))
        print(json.dumps(rows[-1]), flush=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
