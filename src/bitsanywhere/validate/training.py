"""Suite `training`: the same LoRA run on the bf16 model and on the 4-bit one.

Data, order, adapter start and optimizer are the same; only the frozen weights differ. The task is
sorites in words that Carroll's forms are not worded with afterwards, when the adapters are scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from bitsanywhere.validate.adapters import train, with_adapter
from bitsanywhere.validate.carroll import small_and_large
from bitsanywhere.validate.plan import BF16, OURS, PEER, Line, Settings
from bitsanywhere.validate.scoring import Reader, all_likelihoods
from bitsanywhere.validate.sorites import carroll, training_items
from bitsanywhere.validate.statistics import mean_and_error
from bitsanywhere.validate.subject import Subject

COLUMNS = (BF16, OURS, PEER)
ALLOWED = 0.004


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        losses: of each step, in nats a token.
        likelihoods: of the trained adapter on Carroll's forms; see `scoring.likelihoods`.
    """

    losses: tuple[float, ...]
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
    losses = tuple(tqdm(steps, total=len(batches), desc=f"training, {subject.column}", leave=False))
    held_out = carroll(settings.renderings, settings.seed)
    rows = all_likelihoods(model, reader, held_out, f"adapter, {subject.column}")
    return Result(losses, rows)


def differences(given: Result, base: Result) -> list[float]:
    """Relative difference of the losses, step by step."""
    return [a / b - 1 for a, b in zip(given.losses, base.losses, strict=True)]


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """Losses on average, then what the adapters learned."""
    base, peer = columns[BF16], columns.get(PEER)
    line = Line(
        f"loss in 4 bits over bf16, less one, mean of {len(base.losses)} steps",
        abs(mean_and_error(differences(columns[OURS], base))[0]),
        ALLOWED,
        "4-bit training follows bf16 training",
        abs(mean_and_error(differences(peer, base))[0]) if peer else None,
    )
    rows = {name: result.likelihoods for name, result in columns.items()}
    return (line, *small_and_large(rows, BF16, settings.renderings, "adapter on "))
