"""A LoRA run without a trainer: the same start and the same batches for every column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

RANK, ALPHA = 16, 32
WARM_UP = 0.06


def with_adapter(model: Any, seed: int) -> Any:
    """The model with a LoRA adapter of rank 16 on every linear layer but the last, in float32.

    The adapter starts from ``seed`` alone, whatever the model's own weights are stored in.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in trained(adapted).items():
        start = torch.zeros(parameter.shape)
        if "lora_A" in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            start.uniform_(-bound, bound, generator=generator)
        parameter.data = start.to(parameter.device)
    return adapted


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's weights by name, in the order of their names."""
    named = sorted(model.named_parameters(), key=lambda pair: pair[0])
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def train(
    model: Any, batches: list[dict[str, torch.Tensor]], learning_rate: float
) -> Iterator[float]:
    """Takes an AdamW step on each batch; yields its loss, the mean over tokens in nats.

    The rate rises linearly over the first steps and then falls by a cosine.
    """
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.train()
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(i, len(batches))
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield float(loss.detach())
    model.eval()


def loss_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens, from logits in float32."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    kept = targets != -100
    return torch.nn.functional.cross_entropy(logits[:, :-1][kept].float(), targets[kept])


def _schedule(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
