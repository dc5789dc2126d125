"""Run as a script: transformers.Trainer with every optimizer name that it knows for bitsandbytes.

    python trainer_run.py instead|beside FOLDER [NAME ...]

``instead`` puts this library in the place of bitsandbytes, ``beside`` uses the real one with our
kernels. Prints one JSON object: for each name the losses of five steps, those of the last two after
resuming from the third's checkpoint, and the dtypes of the states.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import torch

NAMES = (
    "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "ademamix",
    "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "lion_32bit", "lion_8bit",
    "paged_lion_32bit", "paged_lion_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
)  # fmt: skip
STEPS, SAVED = 5, 3


def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=72, intermediate_size=100, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=80, max_position_embeddings=32,
        )
    )  # fmt: skip


def train(name, folder, resume):
    """(losses by step, the trainer) of a run, from its checkpoint on if `resume`."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), optim=name, max_steps=STEPS, per_device_train_batch_size=2,
        learning_rate=1e-3, use_cpu=True, report_to=[], save_strategy="steps", save_steps=SAVED,
        logging_steps=1, disable_tqdm=True, dataloader_pin_memory=False, seed=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    row = torch.randint(0, 80, (20,), generator=generator).tolist()
    data = [{"input_ids": row, "labels": row}] * 16
    trainer = Trainer(model=model(), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    logged = trainer.state.log_history
    return {entry["step"]: entry["loss"] for entry in logged if "loss" in entry}, trainer


def main(way, folder, names):
    if way == "instead":
        from bitsanywhere import compat

        compat.install(force=True)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = {}
    for name in names or NAMES:
        losses, trainer = train(name, Path(folder) / name, resume=False)
        again, _ = train(name, Path(folder) / name, resume=True)
        optimizer = trainer.optimizer.optimizer
        states = {n: optimizer.state[p]["state1"] for n, p in trainer.model.named_parameters()}
        found[name] = {
            "class": f"{type(optimizer).__module__}.{type(optimizer).__name__}",
            "losses": [losses[step] for step in range(1, STEPS + 1)],
            "resumed": [again[step] for step in range(SAVED + 1, STEPS + 1)],
            "embedding": str(states["model.embed_tokens.weight"].dtype),
            "linear": str(states["model.layers.0.mlp.up_proj.weight"].dtype),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
