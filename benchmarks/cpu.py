"""4-bit and blockwise ops on the CPU beside bitsandbytes', in one process and taking turns."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

# Ours must not take over the peer's kernels while it is measured.
os.environ["BITSANYWHERE_BACKEND"] = "0"

import bitsandbytes as peer
import torch
from tqdm import tqdm

import bitsanywhere as ours
from benchmarks.measure import environment, interleaved, write

SIZE = 4096
ROWS = (1, 4, 16, 64, 256, 1024)


def main() -> None:
    """Measures everything and writes ``results/cpu.json``."""
    weight = torch.randn(SIZE, SIZE).bfloat16()
    rows: list[dict[str, Any]] = []
    jobs = [*codec_jobs(weight), *matmul_jobs(weight)]
    for job in tqdm(jobs, desc="CPU", unit="case"):
        name, calls, context = job
        with context():
            times = interleaved(calls)
        rows.append(
            {
                "case": name,
                "milliseconds": times,
                "peer_over_ours": times["bitsandbytes"]["median"] / times["bitsanywhere"]["median"],
            }
        )
        tqdm.write(f"{name}: {rows[-1]['peer_over_ours']:.2f}x {times}")
    print(write("cpu", {"environment": environment("cpu"), "rows": rows}))


def codec_jobs(weight: torch.Tensor) -> list:
    """Quantize and dequantize, 4 and 8 bits."""
    jobs = []
    for library in ("4bit", "blockwise"):
        calls: dict[str, dict[str, Any]] = {"quantize": {}, "dequantize": {}}
        for name, module in (("bitsanywhere", ours), ("bitsandbytes", peer)):
            F = module.functional
            if library == "4bit":
                codes, state = F.quantize_4bit(weight, quant_type="nf4")
                calls["quantize"][name] = partial(F.quantize_4bit, weight, quant_type="nf4")
                calls["dequantize"][name] = partial(F.dequantize_4bit, codes, state)
            else:
                codes, state = F.quantize_blockwise(weight, blocksize=256)
                calls["quantize"][name] = partial(F.quantize_blockwise, weight, blocksize=256)
                calls["dequantize"][name] = partial(F.dequantize_blockwise, codes, state)
        for action, pair in calls.items():
            jobs.append((f"{action}_{library} {SIZE}x{SIZE} bfloat16", pair, torch.no_grad))
    return jobs


def matmul_jobs(weight: torch.Tensor) -> list:
    """The layer in training mode (gradients on) and in eval mode, by rows of the input."""
    layers = {}
    for name, module in (("bitsanywhere", ours), ("bitsandbytes", peer)):
        for mode in ("training", "eval"):
            layer = module.nn.LinearNF4(SIZE, SIZE, bias=False, compute_dtype=torch.bfloat16)
            layer.weight.data.copy_(weight)
            layers[name, mode] = layer.to("cpu").train(mode == "training")
    dense = torch.nn.Linear(SIZE, SIZE, bias=False, dtype=torch.bfloat16)
    jobs = []
    for mode, context in (("training", torch.enable_grad), ("eval", torch.no_grad)):
        for count in ROWS:
            x = torch.randn(count, SIZE, dtype=torch.bfloat16, requires_grad=mode == "training")
            calls = {
                name: partial(layers[name, mode], x) for name in ("bitsanywhere", "bitsandbytes")
            }
            calls["dense bfloat16"] = partial(dense, x)
            jobs.append((f"linear {mode} M={count} {SIZE}x{SIZE} bfloat16", calls, context))
    for count in (1, 64, 1024):
        calls = {
            name: partial(forward_and_backward, layers[name, "training"], count)
            for name in ("bitsanywhere", "bitsandbytes")
        }
        case = f"linear forward and backward M={count} {SIZE}x{SIZE} bfloat16"
        jobs.append((case, calls, torch.enable_grad))
    return jobs


def forward_and_backward(layer: torch.nn.Module, rows: int) -> None:
    """One training pass through ``layer``, gradient of the input included."""
    x = torch.ones(rows, SIZE, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()


if __name__ == "__main__":
    main()
