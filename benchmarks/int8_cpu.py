"""LLM.int8() on the CPU beside bitsandbytes', in one process and taking turns."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

# Ours must not take over the peer's kernels while it is measured.
os.environ["BITSANYWHERE_BACKEND"] = "0"

import logging

import bitsandbytes as peer
import torch
from tqdm import tqdm

import bitsanywhere as ours
from benchmarks.measure import environment, interleaved, write

SHAPES = ((4096, 4096), (14336, 4096))
ROWS = (1, 4, 16, 64, 256, 1024)
THRESHOLDS = (0.0, 6.0)
# bitsandbytes says for each call that it casts the input to float16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def main() -> None:
    """Measures everything and writes ``results/int8_cpu.json``."""
    rows: list[dict[str, Any]] = []
    for n, k in SHAPES:
        weight = torch.randn(n, k) / k**0.5
        jobs = [*linear_jobs(weight), *codec_jobs(weight)]
        for name, calls in tqdm(jobs, desc=f"CPU int8 {n}x{k}", unit="case"):
            with torch.no_grad():
                times = interleaved(calls, seconds=1.0)
            ratio = times["bitsandbytes"]["median"] / times["bitsanywhere"]["median"]
            rows.append({"case": name, "milliseconds": times, "peer_over_ours": ratio})
            tqdm.write(f"{name}: {ratio:.2f}x {times}")
    print(write("int8_cpu", {"environment": environment("cpu"), "rows": rows}))


def linear_jobs(weight: torch.Tensor) -> list:
    """The layer in eval mode, by rows of an input of which four columns hold outliers."""
    n, k = weight.shape
    dense = weight.bfloat16()
    jobs = []
    for threshold in THRESHOLDS:
        layers = {}
        for name, module in (("bitsanywhere", ours), ("bitsandbytes", peer)):
            layer = module.nn.Linear8bitLt(
                k, n, bias=False, has_fp16_weights=False, threshold=threshold
            )
            layer.weight.data = weight.clone()
            layers[name] = layer.to("cpu").eval()
        for count in ROWS:
            x = torch.randn(count, k).clamp(-5, 5)
            x[:, :: k // 4] = 8.0
            x = x.bfloat16()
            calls = {name: partial(layer, x) for name, layer in layers.items()}
            check(calls)
            calls["dense bfloat16"] = partial(torch.nn.functional.linear, x, dense)
            jobs.append((f"linear threshold={threshold:g} M={count} {n}x{k} bfloat16", calls))
    return jobs


def codec_jobs(weight: torch.Tensor) -> list:
    """Quantize and dequantize the weight."""
    n, k = weight.shape
    half = weight.half()
    codes, stats, _ = ours.functional.int8_vectorwise_quant(half)
    calls: dict[str, dict[str, Any]] = {"quantize": {}, "dequantize": {}}
    for name, module in (("bitsanywhere", ours), ("bitsandbytes", peer)):
        F = module.functional
        calls["quantize"][name] = partial(F.int8_vectorwise_quant, half)
        calls["dequantize"][name] = partial(F.int8_vectorwise_dequant, codes, stats)
    return [(f"{action} {n}x{k} float16", pair) for action, pair in calls.items()]


def check(calls: dict[str, Any]) -> None:
    """Refuses to time what does not compute the same to 1 %."""
    with torch.no_grad():
        given, wanted = (calls[name]().float() for name in ("bitsanywhere", "bitsandbytes"))
    error = float((given - wanted).norm() / wanted.norm())
    if not error < 0.01:
        raise SystemExit(f"the two layers differ by {error:.3f}: nothing to compare")


if __name__ == "__main__":
    main()
