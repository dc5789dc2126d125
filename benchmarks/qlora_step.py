"""A QLoRA step of the demo's model beside the same LoRA step in bf16, ours and bitsandbytes'.

Each library has a process of its own, in which 4-bit and bf16 steps take turns on the same batch;
compared are the two ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.measure import environment, interleaved, write

EXAMPLES = Path(__file__).parents[1] / "examples"


def child(library: str, device: str) -> dict[str, Any]:
    """Times of both steps in milliseconds, and of how much larger the 4-bit one is."""
    sys.path.insert(0, str(EXAMPLES))
    if library == "bitsanywhere":
        from qlora.library import use_bitsanywhere

        use_bitsanywhere()
    import torch
    from qlora.gguf_to_hf import convert, find_gguf
    from qlora.syllogisms import generate
    from qlora.training import build_trainer, load_model, load_tokenizer

    scratch = Path(tempfile.gettempdir()) / "bitsanywhere-benchmark-model"
    folder = convert(find_gguf(), scratch)
    tokenizer = load_tokenizer(folder)
    calls = {}
    for name, four_bit in (("4-bit", True), ("bfloat16", False)):
        trainer = build_trainer(
            load_model(folder, device, four_bit=four_bit).train(),
            tokenizer,
            generate(64, seed=0),
            steps=1,
            scratch=scratch,
        )
        batch = {k: v.to(device) for k, v in next(iter(trainer.get_train_dataloader())).items()}
        adapter = [p for p in trainer.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(adapter, lr=1e-4)

        def step(trainer=trainer, batch=batch, optimizer=optimizer) -> None:
            trainer.compute_loss(trainer.model, batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device == "cuda":
                torch.cuda.synchronize()

        calls[name] = step
    times = interleaved(calls, seconds=40, rounds=10)
    ratio = times["4-bit"]["median"] / times["bfloat16"]["median"]
    return {"library": library, "milliseconds": times, "ratio_to_bfloat16": ratio}


def main() -> None:
    """Runs one child a library and writes ``results/qlora_step_<device>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--child", choices=("bitsanywhere", "bitsandbytes"))
    arguments = parser.parse_args()
    if arguments.child:
        print("RESULT " + json.dumps(child(arguments.child, arguments.device)))
        return
    rows = []
    for library in tqdm(("bitsanywhere", "bitsandbytes"), desc="QLoRA step", unit="library"):
        command = [sys.executable, "-m", "benchmarks.qlora_step", "--child", library]
        done = subprocess.run(
            [*command, "--device", arguments.device],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "BITSANYWHERE_BACKEND": "0"},
        )
        rows.append(json.loads(done.stdout.split("RESULT ")[1]))
        tqdm.write(f"{library}: {rows[-1]['ratio_to_bfloat16']:.3f} of bfloat16")
    device = arguments.device
    print(write(f"qlora_step_{device}", {"environment": environment(device), "rows": rows}))


if __name__ == "__main__":
    main()
