"""Ops on an NVIDIA GPU beside bitsandbytes, cuBLAS and the copy bandwidth, in one run.

Times are CUDA graph replays over rotated buffers, so that the L2 cache does not serve them:
the median over replays of a graph that holds one call for each buffer, and at least `LEAST_CALLS`,
as starting a graph takes some microseconds. The libraries' graphs take turns. What a library cannot
do in a graph is timed by events around eager calls, and listed under ``eager`` in its row. Rows
called eager are something else: the CPU's time of a call, without waiting for the GPU.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["BITSANYWHERE_BACKEND"] = "0"

import torch
from tqdm import tqdm

import bitsanywhere as ours
from benchmarks.measure import environment, write

try:
    import bitsandbytes as peer
except ImportError:
    peer = None

ROTATED_BYTES = 400 << 20
LEAST_CALLS = 16
GEMM_SHAPES = ((28672, 8192), (14336, 4096), (4096, 4096))
GEMM_ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 512)
CODEC_SIZE = 16384
Job = tuple[str, dict[str, Callable[[int], Any]], int, dict[str, Any]]


def captured(call: Callable[[int], Any], buffers: int) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of some calls, and how many; ``call(i)`` works on buffer ``i``."""
    calls = buffers * -(-LEAST_CALLS // buffers)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(min(buffers, 3)):
            call(index)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(calls):
            call(index % buffers)
    return graph, calls


def times_in_turns(
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]], turns: int = 11
) -> dict[str, float]:
    """Seconds of one call in each graph. They take turns: a chip at its power limit slows down."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(-1, turns):
        for name, (graph, calls) in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 0:
                times[name].append(start.elapsed_time(end) / 1e3 / calls)
    return {name: statistics.median(found) for name, found in times.items()}


def graph_time(call: Callable[[int], Any], buffers: int) -> float:
    """Seconds of one call in a graph; ``call(i)`` works on buffer ``i``."""
    return times_in_turns({"": captured(call, buffers)})[""]


def event_time(call: Callable[[int], Any], buffers: int, rounds: int = 5, calls: int = 1) -> float:
    """Seconds of one eager call; ``call(i)`` works on buffer ``i``, ``calls`` times in a row."""
    times = []
    for index in range(3):
        call(index % buffers)
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for index in range(buffers * calls):
            call(index % buffers)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / buffers / calls)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read and written a second by a device-to-device copy of 1 GiB.

    Not in a graph, where the driver was seen to copy at 0.8 of this speed.
    """
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / event_time(lambda _: target.copy_(source), 1, 11, calls=4)


def libraries() -> dict[str, Any]:
    """Ours and, if installed, the peer."""
    return {"bitsanywhere": ours} | ({"bitsandbytes": peer} if peer is not None else {})


def codec_jobs() -> list[Job]:
    """Quantize and dequantize a 16384x16384 bf16 tensor; ``bytes`` is what must move."""
    x = torch.randn(CODEC_SIZE, CODEC_SIZE, device="cuda").bfloat16()
    count = x.numel()
    bytes4 = count * 2 + count // 2 + count // 64 * 4
    bytes8 = count * 2 + count + count // 256 * 4
    calls: dict[str, dict[str, Any]] = {}
    for name, module in libraries().items():
        F = module.functional
        codes4, state4 = F.quantize_4bit(x, quant_type="nf4")
        codes8, state8 = F.quantize_blockwise(x, blocksize=256)
        work = {
            "quantize_4bit nf4": lambda _, F=F: F.quantize_4bit(x, quant_type="nf4"),
            "dequantize_4bit nf4": lambda _, F=F, c=codes4, s=state4: F.dequantize_4bit(c, s),
            "quantize_blockwise": lambda _, F=F: F.quantize_blockwise(x, blocksize=256),
            "dequantize_blockwise": lambda _, F=F, c=codes8, s=state8: F.dequantize_blockwise(c, s),
        }
        for action, call in work.items():
            calls.setdefault(action, {})[name] = call
    return [
        (action, pair, 1, {"bytes": bytes4 if "4bit" in action else bytes8, "size": CODEC_SIZE})
        for action, pair in calls.items()
    ]


def gemm_jobs(n: int, k: int) -> list[Job]:
    """One shape, every M, plain and nested statistics."""
    buffers = max(2, -(-ROTATED_BYTES // (n * k // 2)))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    dense = [weights[i % 2].clone() for i in range(max(2, -(-ROTATED_BYTES // (n * k * 2))))]
    jobs = []
    for nested in (False, True):
        quantized = {
            name: [
                module.functional.quantize_4bit(
                    weights[i % 2], quant_type="nf4", compress_statistics=nested
                )
                for i in range(buffers)
            ]
            for name, module in libraries().items()
        }
        scales = n * k // 64 * (1 if nested else 4)
        for m in GEMM_ROWS:
            x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            calls: dict[str, Callable[[int], Any]] = {}
            for name, module in libraries().items():
                pairs = quantized[name]
                calls[name] = lambda i, p=pairs, f=module.matmul_4bit, x=x: f(
                    x, p[i][0].t(), quant_state=p[i][1]
                )
            if not nested:
                calls["cublas bfloat16"] = lambda i, x=x: torch.nn.functional.linear(
                    x, dense[i % len(dense)]
                )
            moved = n * k // 2 + scales + 2 * m * (n + k)
            facts = {"bytes": moved, "m": m, "n": n, "k": k, "nested": nested}
            jobs.append((f"gemm_4bit M={m} {n}x{k}{' nested' * nested}", calls, buffers, facts))
    return jobs


def training_jobs() -> list[Job]:
    """Forward and gradient of the input at training sizes, beside a dense bf16 layer."""
    jobs = []
    for m, n, k in ((4096, 4096, 4096), (4096, 14336, 4096), (1024, 4096, 4096)):
        layers = {
            name: module.nn.LinearNF4(k, n, bias=False, compute_dtype=torch.bfloat16).cuda()
            for name, module in libraries().items()
        }
        dense = torch.nn.Linear(k, n, bias=False, device="cuda", dtype=torch.bfloat16)
        layers["cublas bfloat16"] = dense.requires_grad_(False)
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        seed = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)

        def both(_: int, layer: torch.nn.Module, x=x, seed=seed) -> None:
            torch.autograd.grad(layer(x), x, seed)

        def forward(_: int, layer: torch.nn.Module, x=x) -> None:
            layer(x.detach())

        for name, call in (("forward", forward), ("forward and input gradient", both)):
            calls = {
                which: (lambda i, layer=layer, call=call: call(i, layer))
                for which, layer in layers.items()
            }
            jobs.append((f"linear {name} M={m} {n}x{k}", calls, 1, {"m": m, "n": n, "k": k}))
    return jobs


def measure(jobs: list[Job], bandwidth: float) -> list[dict[str, Any]]:
    """One row a job: microseconds of each library, and fractions of the copy bandwidth."""
    rows = []
    for name, calls, buffers, facts in jobs:
        graphs = {}
        for library, call in calls.items():
            try:
                graphs[library] = captured(call, buffers)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                # It copies from the CPU.
                torch.cuda.synchronize()
        times = times_in_turns(graphs)
        if "size" in facts:
            # Or its work went to another stream.
            times = {k: v for k, v in times.items() if facts["bytes"] / v < bandwidth}
        row: dict[str, Any] = {"case": name, **facts, "microseconds": {}, "fraction": {}}
        for library, call in calls.items():
            seconds = times.get(library)
            if seconds is None:
                seconds = event_time(call, buffers, calls=10)
                row.setdefault("eager", []).append(library)
            row["microseconds"][library] = seconds * 1e6
            if "bytes" in facts and library != "cublas bfloat16":
                row["fraction"][library] = facts["bytes"] / seconds / bandwidth
        tqdm.write(f"{name}: " + line(row))
        rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row in short."""
    times = " ".join(f"{name} {us:.1f} us" for name, us in row["microseconds"].items())
    parts = " ".join(f"{name} {part:.2f}" for name, part in row["fraction"].items())
    return f"{times} | {parts}{' eager: ' + ', '.join(row['eager']) if 'eager' in row else ''}"


def eager_rows() -> list[dict[str, Any]]:
    """Host time of one 4-bit linear on a tiny shape, without waiting for the GPU.

    As a layer with nested statistics, and as the two functions with plain ones. Beside the layer,
    what torch takes for a dense one and for one kernel without any Python: hosts differ several
    times over, and some of them from second to second, so that all take turns. The fastest turn is
    what the code costs, the median what this host made of it.
    """
    x = torch.randn(1, 64, device="cuda", dtype=torch.bfloat16)
    settings = {"bias": False, "compute_dtype": torch.bfloat16}
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, module in libraries().items():
        layer = module.nn.LinearNF4(64, 64, **settings).cuda()
        plain = module.nn.LinearNF4(64, 64, compress_statistics=False, **settings).cuda().weight
        codes, state = plain.t(), plain.quant_state
        calls["LinearNF4 nested", name] = partial(layer, x)
        calls["matmul_4bit", name] = partial(module.matmul_4bit, x, codes, quant_state=state)
        calls["gemv_4bit", name] = partial(module.functional.gemv_4bit, x, codes, state=state)
    dense = torch.nn.Linear(64, 64, bias=False).to(x)
    calls["LinearNF4 nested", "nn.Linear bfloat16"] = partial(dense, x)
    calls["LinearNF4 nested", "add_"] = partial(x.add_, 0)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    with torch.no_grad():
        for call in calls.values():
            for _ in range(200):
                call()
        for key, call in list(calls.items()) * 60:
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(100):
                call()
            taken[key].append((time.perf_counter() - start) / 100 * 1e6)
    rows = []
    for case in dict.fromkeys(case for case, _ in calls):
        for turn, pick in (("fastest", min), ("median", statistics.median)):
            times = {name: pick(found) for (of, name), found in taken.items() if of == case}
            rows.append({"case": f"eager {case} 64x64, {turn} turn", "microseconds": times})
            tqdm.write(f"{rows[-1]}")
    return rows


FIRST_USE = """
import time, torch, bitsanywhere as bnb
shapes = ((2048, 2048), (2048, 5632), (5632, 2048), (2048, 512))
# What a dense model does before its first forward too: reach the GPU, and make inputs there.
dense = torch.randn(2048, 2048, dtype=torch.bfloat16).cuda()
(torch.ones(8, 2048, device="cuda", dtype=torch.bfloat16) @ dense).sum().item()
def made():
    return [bnb.nn.LinearNF4(a, b, bias=False, compute_dtype=torch.bfloat16).bfloat16()
            for a, b in shapes]
def timed(layers):
    start = time.perf_counter()
    for layer in layers:
        layer.cuda()
    for m in (8, 1):
        for layer in layers:
            layer(torch.ones(m, layer.in_features, device="cuda", dtype=torch.bfloat16))
    torch.cuda.synchronize()
    return time.perf_counter() - start
models = [made() for _ in range(4)]
first, *again = map(timed, models)
print("ADDED", first - min(again))
"""


def first_use() -> dict[str, float]:
    """Seconds that the first use of a small 4-bit model adds, on a cold and on a warm cache."""
    # As pip does when it installs a package.
    compileall.compile_dir(os.path.dirname(ours.__file__), quiet=1)
    with tempfile.TemporaryDirectory() as cache:
        settings = {**os.environ, "BITSANYWHERE_CACHE_DIR": os.path.join(cache, "kernels")}
        result = {}
        for state in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST_USE],
                capture_output=True,
                text=True,
                env=settings,
                check=True,
            )
            result[state] = float(done.stdout.split("ADDED")[1])
    return result


def main() -> None:
    """Measures everything and writes ``results/gpu_<name>.json``, anew after every part."""
    torch.manual_seed(0)
    name = torch.cuda.get_device_name()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    bandwidth = copy_bandwidth()
    rows: list[dict[str, Any]] = []
    content = {
        "environment": {**environment(name), "driver": driver.stdout.split("\n")[0]},
        "copy_bandwidth_bytes_per_second": bandwidth,
        "rows": rows,
    }
    parts = [codec_jobs, *(partial(gemm_jobs, n, k) for n, k in GEMM_SHAPES), training_jobs]
    for jobs in parts:
        with torch.set_grad_enabled(jobs is training_jobs):
            rows += measure(jobs(), bandwidth)
        torch.cuda.empty_cache()
        path = write(f"gpu_{name.lower().replace(' ', '_')}", content)
    rows += eager_rows()
    content["first_use_seconds"] = first_use()
    write(path.stem, content)
    print(content["first_use_seconds"], path)


if __name__ == "__main__":
    main()
