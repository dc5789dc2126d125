"""What is to be measured: settings, columns, and the order in which suites run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

SUITES = ("roundtrip", "logits", "training", "carroll", "speed")

OURS = "bitsanywhere"
PEER = "bitsandbytes"
BF16 = "bf16"
REFERENCE = "reference"
DEQUANTIZED = "dequantized"
TITLES = {
    BF16: "bf16",
    OURS: "NF4, bitsanywhere",
    DEQUANTIZED: "NF4 weights, by torch",
    REFERENCE: "reference",
    PEER: "NF4, bitsandbytes",
}


@dataclass(frozen=True)
class Settings:
    """Sizes of the measurements.

    Attributes:
        seed: of every random choice.
        block_tokens: length of the pieces that the text of `logits` is cut into; each is read
            without the ones before it.
        resamples: bootstrap draws.
        steps: optimizer steps of `training`.
        batch: problems in each.
        learning_rate: at its peak.
        renderings: wordings of each of Carroll's forms.
        written_tokens: most tokens of a freely written answer.
        generated_tokens: tokens written to measure the speed of generation.
        prefill_tokens: length of the prompt read to measure that of prefill.
        speed_steps: optimizer steps timed by `speed`.
        gaussian_rows: rows of 1024 values in the synthetic tensors of `roundtrip`.
        dtype: what every column computes in, "bfloat16" or "float32"; the bf16 column's weights
            are those of bf16 in both.
    """

    seed: int = 0
    block_tokens: int = 128
    resamples: int = 2000
    steps: int = 100
    batch: int = 4
    learning_rate: float = 5e-4
    renderings: int = 3
    written_tokens: int = 24
    generated_tokens: int = 64
    prefill_tokens: int = 512
    speed_steps: int = 10
    gaussian_rows: int = 4096
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Line:
    """One pass line.

    Attributes:
        measured: what was found; passed if not above ``allowed``.
        why: where the line comes from.
        peer: the same figure for stock bitsandbytes, where it was measured.
    """

    name: str
    measured: float
    allowed: float
    why: str
    peer: float | None = None

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.measured <= self.allowed


@dataclass(frozen=True)
class Plan:
    """One run of the command.

    Attributes:
        model: a Hugging Face folder or a GGUF file.
        out: where results go.
        device: "cpu" or "cuda".
        reference: another model to compare with, like ``model``; or None.
        peer: whether a stock bitsandbytes is to be measured as well.
    """

    model: Path
    out: Path
    device: str
    suites: tuple[str, ...] = SUITES
    reference: Path | None = None
    peer: bool = False
    settings: Settings = field(default_factory=Settings)

    def columns(self, suite: str) -> tuple[str, ...]:
        """The columns of a suite that can be measured, in order."""
        absent = set() if self.peer else {PEER}
        if self.reference is None:
            absent.add(REFERENCE)
        return tuple(name for name in module_of(suite).COLUMNS if name not in absent)


def module_of(suite: str) -> ModuleType:
    """The module of a suite: COLUMNS, Result, measure(subject), judge(columns, settings).

    ALONE = True there asks for a process a column.
    """
    return importlib.import_module(f"bitsanywhere.validate.{suite}")


def revive(result: type, row: Mapping[str, Any]) -> Any:
    """A suite's frozen result from what JSON made of it: lists become tuples, at any depth."""
    return result(**{key: _frozen(value) for key, value in row.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
