"""Whether 8-bit states train as well as 32-bit ones: AdamW, Lion and AdEMAMix on SmolLM2-135M.

    python -m benchmarks.optimizer_convergence [--model FOLDER] [--device cuda] [--steps 100]

The text is this repository's documentation. With ``--model`` a Hugging Face folder of SmolLM2 is
trained on (examples/qlora makes one), else a model of its shape with random weights on single
bytes. Both runs of a pair see the same batches; compared is the loss on text that was not
trained on, after the last step.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import bitsanywhere as bnb
from benchmarks.measure import environment, write

ROOT = Path(__file__).parents[1]
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
    """Trains six times and writes ``results/optimizer_convergence_*.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    start = "random" if options.model is None else "pretrained"
    tokens, model = text_tokens(options.model), load(options.model, options.device)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    facts = environment(options.device)
    if options.device == "cuda":
        facts["device"] = torch.cuda.get_device_name()
    sizes = {name: getattr(options, name) for name in ("steps", "rows", "length")}
    found: list[dict[str, Any]] = []
    content = {"environment": facts, "start": start, **sizes, "results": found}
    for name, settings in OPTIMIZERS.items():
        runs = {}
        for bits in (32, 8):
            model.load_state_dict(weights)
            optimizer = getattr(bnb.optim, name)(
                model.parameters(), lr=RATES[start][name], optim_bits=bits, **settings
            )
            runs[bits] = train(model, optimizer, tokens, options)
            kinds = {state["state1"].dtype for state in optimizer.state.values()}
            assert (torch.uint8 in kinds) == (bits == 8)
        ratio = runs[8]["held_out"] / runs[32]["held_out"]
        found.append({"optimizer": name, "runs": runs, "loss_8bit_over_32bit": ratio})
        print(f"{name}: {runs[32]['held_out']:.4f} in 32 bits, {ratio - 1:+.3%} in 8", flush=True)
        path = write(f"optimizer_convergence_{start}_{options.device}", content)
    print(path)


def load(folder: Path | None, device: str) -> torch.nn.Module:
    """The model in float32."""
    torch.manual_seed(0)
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    else:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    return model.train()


def text_tokens(model: Path | None) -> torch.Tensor:
    """The documentation as one row of tokens."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n\n".join(file.read_text() for file in files)
    if model is None:
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    return AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"][0]


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, options: Any
) -> dict[str, Any]:
    """One run: losses on the way, and on held-out text at both ends."""
    rate = optimizer.param_groups[0]["lr"]
    # The last tenth is not trained on.
    windows = tokens[: tokens.numel() // options.length * options.length].view(-1, options.length)
    training, held_out = windows[: -len(windows) // 10], windows[-len(windows) // 10 :]
    generator = torch.Generator().manual_seed(1)
    before = evaluate(model, held_out[:32], options)
    losses = []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        rows = training[torch.randint(len(training), (options.rows,), generator=generator)]
        loss = forward(model, rows, options)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    after = evaluate(model, held_out[:32], options)
    return {"held_out_before": before, "held_out": after, "losses": torch.stack(losses).tolist()}


def forward(model: Any, rows: torch.Tensor, options: Any) -> torch.Tensor:
    """The mean loss of rows of tokens."""
    rows = rows.to(options.device)
    with torch.autocast(options.device, torch.bfloat16):
        return model(input_ids=rows, labels=rows).loss


@torch.no_grad()
def evaluate(model: Any, windows: torch.Tensor, options: Any) -> float:
    """The mean loss of held-out windows."""
    parts = windows.split(options.rows)
    return sum(float(forward(model, part, options)) * len(part) for part in parts) / len(windows)


if __name__ == "__main__":
    main()
