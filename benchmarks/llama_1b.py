"""A Llama of 1.2 billion random weights, made on the spot: quantized, loaded, writing, trained.

    python -m benchmarks.llama_1b [--device cuda|cpu]

The command ``bitsanywhere quantize`` makes the NF4 checkpoint that both libraries load; bf16 loads
the weights it was made from. Each runs in a process of its own; see the suite `speed`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.measure import environment, write
from bitsanywhere.cli.__main__ import main as command
from bitsanywhere.validate.job import Job
from bitsanywhere.validate.machine import arithmetic
from bitsanywhere.validate.plan import BF16, OURS, PEER, Settings
from bitsanywhere.validate.run import peer_installed, run_worker

SETTINGS = Settings(generated_tokens=48, prefill_tokens=1024, speed_steps=20)
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
}


def make(folder: Path, device: str, **sizes: Any) -> int:
    """Writes the model in bf16, with normal weights of deviation 0.02; returns its size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, **sizes}, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def measure(
    folder: Path, device: str, settings: Settings, **sizes: Any
) -> Iterator[dict[str, Any]]:
    """Makes, quantizes, and measures every column that can be; yields all so far after each."""
    parameters = make(folder / "bf16", device, **sizes)
    begun = time.perf_counter()
    paths = [str(folder / name) for name in ("bf16", "nf4")]
    if command(["quantize", *paths, "--double-quant", "--device", device]):
        raise SystemExit("quantize failed")
    seconds = time.perf_counter() - begun
    columns: dict[str, Any] = {}
    names = [BF16, OURS, PEER] if peer_installed() else [BF16, OURS]
    for name in tqdm(names, desc="llama of 1.2 billion", unit="library"):
        job = Job(
            suite="speed",
            columns=(name,),
            original=paths[0] if name == BF16 else paths[1],
            reference=None,
            device=device,
            scratch=str(folder),
            settings=dataclasses.asdict(settings) | {"dtype": arithmetic(device)},
        )
        columns |= run_worker(job)
        yield {"parameters": parameters, "quantize_seconds": seconds, "columns": columns}


def check(columns: dict[str, Any]) -> None:
    """Raises SystemExit if a column failed, or the 4-bit libraries do not train alike."""
    for name, found in columns.items():
        if "error" in found:
            raise SystemExit(f"{name}: {found['error']}")
    ours = columns[OURS]["result"]["losses"]
    theirs = columns.get(PEER, columns[OURS])["result"]["losses"]
    if not all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(ours, theirs, strict=True)):
        raise SystemExit(f"losses differ: {ours} and bitsandbytes' {theirs}")


def main() -> None:
    """Writes ``results/llama_1b_<device>.json``; what failed is in it before this exits with 1."""
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=there)
    device = parser.parse_args().device
    name = torch.cuda.get_device_name() if device == "cuda" else device
    head = {"environment": environment(device) | ({"device": name} if device == "cuda" else {})}
    file = f"llama_1b_{name.lower().replace(' ', '_')}"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for found in measure(Path(folder), device, SETTINGS):
            tqdm.write(str(write(file, head | found)))
    check(found["columns"])


if __name__ == "__main__":
    main()
