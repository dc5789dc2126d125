"""Int8 linear layers on an NVIDIA GPU beside bitsandbytes and cuBLAS float16, in one run.

    python -m benchmarks.int8_gpu [--out FILE]

Times are CUDA graph replays over rotated weights, so that the L2 cache does not serve them; where a
library cannot be captured (it waits for the device to learn of outliers), the time between events
around as many eager calls.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["BITSANYWHERE_BACKEND"] = "0"

import torch
from tqdm import tqdm

from benchmarks.gpu import ROTATED_BYTES, event_time, graph_time
from benchmarks.measure import RESULTS, environment
from bitsanywhere import ops

try:
    import bitsandbytes as peer
except ImportError:
    peer = None

SHAPES = ((4096, 4096), (14336, 4096))
ROWS = (1, 16, 256, 2048)
THRESHOLDS = (0.0, 6.0)
OUTLIERS = 6


def activations(m: int, k: int) -> torch.Tensor:
    """float16, with a few columns that hold one large value each, as language models have."""
    x = torch.randn(m, k, device="cuda").clamp_(-5, 5).half()
    for column in torch.randperm(k)[:OUTLIERS].tolist():
        x[torch.randint(m, ()).item(), column] = 30.0
    return x


def peer_linear(x, codes, stats, threshold) -> torch.Tensor:
    """What the peer's Linear8bitLt computes in an eval forward."""
    quantized, row_stats, columns = torch.ops.bitsandbytes.int8_vectorwise_quant(x, threshold)
    if threshold == 0:
        return torch.ops.bitsandbytes.int8_scaled_mm(
            quantized, codes, row_stats, stats, bias=None, dtype=x.dtype
        )
    return torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        x, quantized, codes, row_stats, stats, columns, None
    )[0]


def measure(n: int, k: int) -> list[dict[str, Any]]:
    """One row for each number of activations and threshold."""
    buffers = max(2, -(-ROTATED_BYTES // (n * k)))
    weights = [
        torch.randint(-127, 128, (n, k), device="cuda", dtype=torch.int8) for _ in range(buffers)
    ]
    dense = [torch.randn(n, k, device="cuda").half() for _ in range(max(2, buffers // 2))]
    stats = torch.rand(n, device="cuda")
    rows = []
    for m in ROWS:
        x = activations(m, k)
        fp16 = graph_time(
            lambda i, x=x: torch.nn.functional.linear(x, dense[i % len(dense)]), buffers
        )
        for threshold in THRESHOLDS:
            ours = graph_time(
                lambda i, x=x, t=threshold: ops.int8_linear(x, weights[i], stats, t, None), buffers
            )
            times = {"bitsanywhere": ours * 1e6, "cublas float16": fp16 * 1e6}
            if peer is not None:
                theirs = event_time(
                    lambda i, x=x, t=threshold: peer_linear(x, weights[i], stats, t), buffers
                )
                times["bitsandbytes"] = theirs * 1e6
            row = {"case": f"int8 linear M={m} {n}x{k} threshold {threshold:g}"}
            row |= {"m": m, "n": n, "k": k, "threshold": threshold, "microseconds": times}
            rows.append(row)
            shown = " ".join(f"{name} {us:.1f} us" for name, us in times.items())
            tqdm.write(f"{row['case']}: {shown}")
    return rows


def main() -> None:
    """Measures all shapes and writes one JSON file, anew after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    name = torch.cuda.get_device_name()
    default = RESULTS / f"int8_gpu_{name.lower().replace(' ', '_')}.json"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    torch.manual_seed(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with torch.no_grad():
        for shape in SHAPES:
            rows += measure(*shape)
            torch.cuda.empty_cache()
            content = {"environment": environment(name), "rows": rows}
            out.write_text(json.dumps(content, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
