"""A LoRA run without a trainer: the same start and the same batches for every column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

RANK, ALPHA = 16, 32
WARM_UP = 0.06


@dataclass(frozen=True)
class StepLoss:
    """Mean cross entropy of a step's batch, before the step, in nats a token.

    Attributes:
        every: of every token but the first of a row; what is trained on.
        answers: of the tokens that the batch marks as answers; NaN if it marks none.
    """

    every: float
    answers: float


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
) -> Iterator[StepLoss]:
    """Takes an AdamW step on the loss of every token of each batch; yields the losses.

    The rate rises linearly over the first steps and then falls by a cosine.

    Args:
        batches: "input_ids", "attention_mask", and "answers", where answers are; (items, length).
    """
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    model.train()
    for i, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(i, len(batches))
        losses = token_losses(model, batch)
        every, answers = _mean(losses, batch["attention_mask"]), _mean(losses, batch["answers"])
        every.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield StepLoss(float(every.detach()), float(answers.detach()))
    model.eval()


def token_losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of each token but the first, (items, length - 1), from logits in float32."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["input_ids"][:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    return losses.view(targets.shape)


def _mean(losses: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    return losses[marked[:, 1:].bool()].mean()


def _schedule(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
