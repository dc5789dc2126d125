"""`bitsanywhere quantize` on SmolLM2-135M-Instruct: time, memory, sizes, and agreement of logits.

    python -m benchmarks.quantize_model

Every conversion and every library has a process of its own. The logits are those of the converted
checkpoint, loaded by transformers with stock bitsandbytes and with this library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import environment, write

EXAMPLES = Path(__file__).parents[1] / "examples"
FORMATS = {"nf4 double": ("nf4", True), "int8": ("int8", False)}
LIBRARIES = ("bitsandbytes", "bitsanywhere", "float32")
TEXT = (
    "A checkpoint that was quantized once should mean the same thing to everyone who reads it. "
    "The codes are integers, the scales are a few floats, and nothing else is left to taste."
)


def convert(source: Path, destination: Path, name: str) -> dict[str, Any]:
    """Converts once; libraries and compiled kernels are loaded before."""
    import torch
    from transformers import LlamaForCausalLM

    from bitsanywhere import ops
    from bitsanywhere.convert.options import Options
    from bitsanywhere.convert.quantize import quantize
    from bitsanywhere.convert.sources import open_source

    quant_type, double = FORMATS[name]
    ops.quantize_4bit(torch.ones(64, 64, dtype=torch.bfloat16), 64, "nf4", torch.uint8)
    ops.int8_vectorwise_quant(torch.ones(64, 64, dtype=torch.float16), 0.0)
    assert LlamaForCausalLM
    before = _memory("VmRSS")
    # The most so far counts from now on.
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    summary = quantize(source, destination, Options(quant_type, double))
    seconds = time.perf_counter() - start
    tensors = open_source(source).tensors.values()
    return {
        "format": name,
        "source": "gguf" if source.suffix == ".gguf" else "bfloat16 folder",
        "seconds": seconds,
        "source_mb_per_second": summary.bytes_before / seconds / 1e6,
        "source_bytes": summary.bytes_before,
        "result_bytes": summary.file_bytes,
        "quantized_tensors": len(summary.quantized.names),
        "largest_tensor_bytes": max(t.rows * t.columns * t.dtype.itemsize for t in tensors),
        "peak_rss_bytes": _memory("VmHWM"),
        "rss_bytes_before": before,
    }


def _memory(key: str) -> int:
    """Memory of this process in bytes: VmRSS now, VmHWM the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def logits(library: str, folder: Path, out: Path) -> None:
    """Writes the logits of TEXT, and of its first token alone, in training and in eval mode.

    The library "float32" is none: the weights are restored and all is computed in float32.
    """
    if library != "bitsandbytes":
        import bitsanywhere.compat

        bitsanywhere.compat.install(force=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, dtype="auto")
    if library == "float32":
        model = model.dequantize(dtype=torch.float32).float()
    found = {}
    with torch.no_grad():
        # Training first: bitsandbytes may repack weights for good in its first eval forward.
        for mode in ("train", "eval"):
            getattr(model, mode)()
            found[f"{mode}, text"] = model(ids).logits
            found[f"{mode}, one token"] = model(ids[:, :1]).logits
    torch.save(found, out)


def agreement(work: Path) -> dict[str, Any]:
    """How our logits differ from bitsandbytes', and both from those in float32."""
    import torch

    stock, ours, exact = (torch.load(work / name) for name in LIBRARIES)
    result = {}
    for key in stock:
        wanted, given, best = (each[key].double() for each in (stock, ours, exact))
        result[key] = {
            "bit_equal": bool(torch.equal(given, wanted)),
            "relative_rms": float((given - wanted).norm() / wanted.norm()),
            "largest_difference": float((given - wanted).abs().max()),
            "largest_logit": float(wanted.abs().max()),
            "relative_rms_from_float32": {
                "bitsandbytes": float((wanted - best).norm() / best.norm()),
                "bitsanywhere": float((given - best).norm() / best.norm()),
            },
            "same_top_1": float((given.argmax(-1) == wanted.argmax(-1)).double().mean()),
        }
    return result


def child(*words: object) -> str:
    """What this module prints when it is run with ``words``; bitsandbytes stays as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantize_model", *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "BITSANYWHERE_BACKEND": "0"},
    )
    return done.stdout


def main() -> None:
    """Runs everything and writes ``results/quantize_smollm2_cpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--convert", nargs=3, help="SRC DST FORMAT; used by the script itself")
    parser.add_argument("--logits", nargs=3, help="LIBRARY DIR OUT; used by the script itself")
    arguments = parser.parse_args()
    if arguments.convert:
        source, destination, name = arguments.convert
        print("RESULT " + json.dumps(convert(Path(source), Path(destination), name)))
        return
    if arguments.logits:
        library, folder, out = arguments.logits
        logits(library, Path(folder), Path(out))
        return
    sys.path.insert(0, str(EXAMPLES))
    from qlora.gguf_to_hf import convert as to_bfloat16
    from qlora.gguf_to_hf import find_gguf

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        sources = (find_gguf(), to_bfloat16(find_gguf(), work / "bfloat16"))
        jobs = [(source, name) for source in sources for name in FORMATS]
        rows = []
        for source, name in tqdm(jobs, desc="Quantizing", unit="model"):
            made = work / f"{source.name}-{name}"
            rows.append(json.loads(child("--convert", source, made, name).split("RESULT ")[1]))
        for row in tqdm(rows[len(FORMATS) :], desc="Comparing logits", unit="format"):
            folder = work / f"bfloat16-{row['format']}"
            for library in LIBRARIES:
                child("--logits", library, folder, work / library)
            row["logits_beside_bitsandbytes"] = agreement(work)
    path = write("quantize_smollm2_cpu", {"environment": environment("cpu"), "rows": rows})
    print(path)


if __name__ == "__main__":
    main()
