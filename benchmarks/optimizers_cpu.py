"""Optimizer steps on the CPU beside bitsandbytes' and torch's fused AdamW, in one process and
taking turns.

    python -m benchmarks.optimizers_cpu
"""

from __future__ import annotations

import os
from typing import Any

# Ours must not take over the peer's kernels while it is measured.
os.environ["BITSANYWHERE_BACKEND"] = "0"

import bitsandbytes as peer
import torch
from tqdm import tqdm

import bitsanywhere as ours
from benchmarks.measure import environment, interleaved, write

LARGE = [(1 << 24,)]
MANY = [(1000,)] * 100 + [(16_000,)] * 100 + [(1_000_000,)] * 10
CASES = [
    (name, shapes, dtype)
    for name, shapes in (("AdamW8bit", LARGE), ("AdamW", LARGE), ("Lion8bit", LARGE))
    for dtype in (torch.float32, torch.bfloat16)
] + [("AdEMAMix8bit", LARGE, torch.float32), ("AdamW8bit", MANY, torch.float32)]


def main() -> None:
    """Measures everything and writes ``results/optimizers_cpu.json``."""
    rows: list[dict[str, Any]] = []
    for name, shapes, dtype in tqdm(CASES, desc="CPU optimizers", unit="case"):
        calls = {
            "bitsanywhere": getattr(ours.optim, name)(parameters(shapes, dtype)).step,
            "bitsandbytes": getattr(peer.optim, name)(parameters(shapes, dtype)).step,
            "torch_fused_adamw_float32": torch.optim.AdamW(
                parameters(shapes, torch.float32), fused=True
            ).step,
        }
        times = interleaved(calls, seconds=4.0)
        median = {library: time["median"] for library, time in times.items()}
        rows.append(
            {
                "case": name,
                "dtype": str(dtype).removeprefix("torch."),
                "tensors": len(shapes),
                "elements": sum(shape[0] for shape in shapes),
                "milliseconds": times,
                "peer_over_ours": median["bitsandbytes"] / median["bitsanywhere"],
                "ours_over_torch": median["bitsanywhere"] / median["torch_fused_adamw_float32"],
            }
        )
        tqdm.write(f"{name} {dtype} of {len(shapes)} tensors: {median}")
    print(write("optimizers_cpu", {"environment": environment("cpu"), "rows": rows}))


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Parameters with gradients, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        p.grad = (torch.randn(shape, generator=generator) * 0.1).to(dtype)
        made.append(p)
    return made


if __name__ == "__main__":
    main()
