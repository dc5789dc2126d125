"""Whether 8-bit states train as well as 32-bit ones: AdamW, Lion and AdEMAMix on SmolLM2-135M.

    python -m benchmarks.optimizer_convergence --model GGUF_OR_DIR [--device cuda] [--steps 100]

The text is this repository: its documentation and its source. With ``--model`` the demo's model is
trained on, from its GGUF file or a Hugging Face folder, else one of its shape with random weights
on single bytes. Both runs of a pair start from the same weights and see the same batches. Compared
is the mean loss of the last fifth of the steps (20 of 100), since that of a single step, and of the
weights after it, goes up and down by more than a percent; the loss on text that was not trained on
stands beside it. Every pair is run on several orders of the batches, for the spread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import bitsanywhere as bnb
from benchmarks.measure import environment, write
from bitsanywhere.validate.folder import model_folder
from bitsanywhere.validate.machine import arithmetic
from bitsanywhere.validate.statistics import mean_and_error

ROOT = Path(__file__).parents[1]
ALLOWED = 0.01
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
# The slow average of AdEMAMix needs thousands of steps; here it grows over those there are.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"betas": (0.9, 0.95), "weight_decay": 0.1},
    "Lion": {"betas": (0.9, 0.99), "weight_decay": 0.1},
    "AdEMAMix": {"betas": (0.9, 0.95, 0.999), "alpha": 2.0, "weight_decay": 0.1},
}
RATES = {"random": {"AdamW": 6e-4, "Lion": 1e-4, "AdEMAMix": 3e-4},
         "pretrained": {"AdamW": 5e-5, "Lion": 1e-5, "AdEMAMix": 3e-5}}  # fmt: skip


def main() -> None:
    """Trains every pair and writes ``results/optimizer_convergence_*.json`` after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, metavar="GGUF_OR_DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    options = parser.parse_args()
    start = "random" if options.model is None else "pretrained"
    tokens, model = prepare(options.model, options.device)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    facts = environment(options.device)
    if options.device == "cuda":
        facts["device"] = torch.cuda.get_device_name()
    sizes = {name: getattr(options, name) for name in ("steps", "rows", "length", "seeds")}
    found: list[dict[str, Any]] = []
    content = {"environment": facts, "start": start, **sizes, "last": last(options)}
    content |= {"arithmetic": arithmetic(options.device), "allowed": ALLOWED, "results": found}
    file = f"optimizer_convergence_{start}_{options.device}"
    if options.optimizers != parser.get_default("optimizers"):
        file += "_" + options.optimizers.lower().replace(",", "_")
    for name in options.optimizers.split(","):
        pairs = []
        for seed in tqdm(range(options.seeds), desc=name, unit="pair"):
            runs = {}
            for bits in (32, 8):
                model.load_state_dict(weights)
                optimizer = getattr(bnb.optim, name)(
                    model.parameters(), lr=RATES[start][name], optim_bits=bits, **OPTIMIZERS[name]
                )
                runs[bits] = train(model, optimizer, tokens, seed, options)
                kinds = {state["state1"].dtype for state in optimizer.state.values()}
                assert (torch.uint8 in kinds) == (bits == 8)
            pairs.append(runs)
        found.append(compared(name, pairs, options))
        tqdm.write(told(found[-1]))
        path = write(file, content)
    print(path)


def prepare(path: Path | None, device: str) -> tuple[torch.Tensor, torch.nn.Module]:
    """The text as one row of tokens, and the model in float32."""
    torch.manual_seed(0)
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    files += sorted((ROOT / "src").rglob("*.py"))
    text = "\n\n".join(file.read_text() for file in files)
    if path is None:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SMOLLM2))
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long(), model.train()
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(path, Path(folder))
        tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")["input_ids"][0]
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
    return tokens, model.train()


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    seed: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One run: losses on the way, and on held-out text at both ends."""
    rate = optimizer.param_groups[0]["lr"]
    windows = tokens[: tokens.numel() // options.length * options.length].view(-1, options.length)
    # Every tenth is not trained on.
    kept = torch.arange(len(windows)) % 10 == 0
    training, held_out = windows[~kept], windows[kept]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(training), generator=generator)
    before = evaluate(model, held_out[:32], options)
    losses = []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        picked = (torch.arange(options.rows) + step * options.rows) % len(order)
        loss = forward(model, training[order[picked]], options)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    after = evaluate(model, held_out[:32], options)
    return {"held_out_before": before, "held_out": after, "losses": torch.stack(losses).tolist()}


def forward(model: Any, rows: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """The mean loss of rows of tokens."""
    rows = rows.to(options.device)
    bf16 = arithmetic(options.device) == "bfloat16"
    with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
        return model(input_ids=rows, labels=rows).loss


@torch.no_grad()
def evaluate(model: Any, windows: torch.Tensor, options: argparse.Namespace) -> float:
    """The mean loss of held-out windows."""
    parts = windows.split(options.rows)
    return sum(float(forward(model, part, options)) * len(part) for part in parts) / len(windows)


def last(options: argparse.Namespace) -> int:
    """How many steps at the end are compared."""
    return max(1, options.steps // 5)


def compared(
    name: str, pairs: list[dict[int, dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    """One optimizer's pairs, and how much higher the loss is in 8 bits: means over the pairs."""
    ends = [
        {bits: statistics.fmean(run["losses"][-last(options) :]) for bits, run in pair.items()}
        for pair in pairs
    ]
    rises = [end[8] / end[32] - 1 for end in ends]
    outside = [pair[8]["held_out"] / pair[32]["held_out"] - 1 for pair in pairs]
    mean = statistics.fmean(rises)
    return {
        "optimizer": name,
        "loss": {str(bits): statistics.fmean(end[bits] for end in ends) for bits in (32, 8)},
        "rise": mean,
        "rises": rises,
        "error": mean_and_error(rises)[1] if len(rises) > 1 else None,
        "held_out_rise": statistics.fmean(outside),
        "held_out_rises": outside,
        "passed": abs(mean) <= ALLOWED,
        "pairs": pairs,
    }


def told(result: dict[str, Any]) -> str:
    """A result in one line."""
    each = ", ".join(f"{rise:+.3%}" for rise in result["rises"])
    return (
        f"{result['optimizer']}: {result['loss']['32']:.4f} in 32 bits, {result['rise']:+.3%} in 8 "
        f"({each}); held out {result['held_out_rise']:+.3%}"
    )


if __name__ == "__main__":
    main()
