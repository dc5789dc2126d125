"""Suite `training`: the same LoRA run on the bf16 model and on the 4-bit one.

Data, order, adapter start and optimizer are the same; only the frozen weights differ. The task is
sorites in words that Carroll's forms are not worded with afterwards, when the adapters are scored.

What is trained on is the loss of every token, as in pretraining and in trl's SFTTrainer on plain
text. Compared is that loss and the loss of the answers' tokens alone, which is what training on
prompts and completions looks at, each as its mean over the steps: the mean of the quotients step by
step, which is shown too, would count a step whose loss is near zero as much as all the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from bitsanywhere.validate.adapters import train, with_adapter
from bitsanywhere.validate.carroll import small_and_large
from bitsanywhere.validate.plan import BF16, OURS, PEER, Line, Settings
from bitsanywhere.validate.scoring import Reader, all_likelihoods
from bitsanywhere.validate.sorites import carroll, training_items
from bitsanywhere.validate.subject import Subject

COLUMNS = (BF16, OURS, PEER)
ALLOWED = 0.004


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        losses: of each step, over every token, in nats a token.
        answer_losses: of each step, over the tokens of answers.
        likelihoods: of the trained adapter on Carroll's forms; see `scoring.likelihoods`.
    """

    losses: tuple[float, ...]
    answer_losses: tuple[float, ...]
    likelihoods: tuple[tuple[float, ...], ...]


def measure(subject: Subject) -> Result:
    """Trains an adapter on the column's model, then scores it."""
    settings = subject.settings
    reader = Reader(subject.tokenizer())
    items = training_items(settings.steps * settings.batch, settings.seed)
    batches = [
        reader.batch(items[i : i + settings.batch], subject.device)
        for i in range(0, len(items), settings.batch)
    ]
    model = with_adapter(subject.model(), settings.seed)
    steps = train(model, batches, settings.learning_rate)
    losses = list(tqdm(steps, total=len(batches), desc=f"training, {subject.column}", leave=False))
    held_out = carroll(settings.renderings, settings.seed)
    rows = all_likelihoods(model, reader, held_out, f"adapter, {subject.column}")
    every, answers = zip(*((loss.every, loss.answers) for loss in losses))
    return Result(every, answers, rows)


def differences(given: Sequence[float], base: Sequence[float]) -> list[float]:
    """Relative difference of losses, step by step."""
    return [a / b - 1 for a, b in zip(given, base, strict=True)]


def rise(given: Sequence[float], base: Sequence[float]) -> float:
    """Relative difference of the mean losses of the same steps."""
    return math.fsum(given) / math.fsum(base) - 1


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """Losses on average, then what the adapters learned."""
    base, ours, peer = columns[BF16], columns[OURS], columns.get(PEER)
    steps = f"mean of {len(base.losses)} steps"
    lines = (
        Line(
            f"loss of every token in 4 bits over bf16, less one, {steps}",
            abs(rise(ours.losses, base.losses)),
            ALLOWED,
            "4-bit training follows bf16 training",
            abs(rise(peer.losses, base.losses)) if peer else None,
        ),
        Line(
            f"loss of the answers in 4 bits over bf16, less one, {steps}",
            abs(rise(ours.answer_losses, base.answer_losses)),
            ALLOWED,
            "the same, in what the model has to say",
            abs(rise(peer.answer_losses, base.answer_losses)) if peer else None,
        ),
    )
    rows = {name: result.likelihoods for name, result in columns.items()}
    return (*lines, *small_and_large(rows, BF16, settings.renderings, "adapter on "))
