"""What each suite's outcome has to show: a sentence, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitsanywhere.validate import carroll, logits, roundtrip, training
from bitsanywhere.validate.plan import BF16, OURS, TITLES, Settings
from bitsanywhere.validate.present.reasons import CHANCE, reason
from bitsanywhere.validate.present.svg import Bar, bar_plot, histogram, line_plot
from bitsanywhere.validate.run import Outcome
from bitsanywhere.validate.scoring import chosen
from bitsanywhere.validate.sorites import carroll as problems
from bitsanywhere.validate.sorites import carroll16
from bitsanywhere.validate.statistics import Interval, mean_and_error
from bitsanywhere.validate.theory import promised

WORST = 8


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first cell of a row names it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A plot: its file's stem, SVG text, and a caption."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A suite's part of the report."""

    title: str
    text: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def section(outcome: Outcome, settings: Settings) -> Section | None:
    """The section of an outcome; None where a column that it needs is missing."""
    if not outcome.lines:
        return None
    shown = _SECTIONS[outcome.suite](outcome.columns, settings)
    return replace(shown, text=f"{shown.text} {reason(outcome).strip()}".strip())


def _titles(columns: dict[str, Any]) -> list[str]:
    return [TITLES[name] for name in columns]


def _roundtrip(columns: dict[str, roundtrip.Result], settings: Settings) -> Section:
    ours = columns[OURS]
    theory = promised("nf4", roundtrip.BLOCK4)
    formats = [
        (name, f"{expected:.6f}", f"{found:.6f}", f"{found / expected - 1:+.3%}")
        for name, expected, found in zip(ours.formats, ours.theory, ours.measured)
    ]
    worst = sorted(zip(ours.errors, ours.best, ours.names), reverse=True)[:WORST]
    tensors = [
        (name, f"{error:.5f}", f"{best:.5f}", f"{error / theory:.4f}")
        for error, best, name in worst
    ]
    means = [(TITLES[name], _spread(each.errors)) for name, each in columns.items() if each.errors]
    figures = ()
    if means:
        svg = histogram(
            {TITLES[name]: each.errors for name, each in columns.items() if each.errors},
            "RMS error over RMS of the weights",
            "tensors",
            theory,
        )
        caption = "Error of every quantized tensor; dotted: NF4's for Gaussian weights."
        figures = (Figure("roundtrip", svg, caption),)
    return Section(
        "Roundtrip: the weights",
        f"{len(ours.errors)} tensors of the model against their originals; Gaussian tensors "
        "against theory.",
        (
            Table(("format, on Gaussian weights", "theory", "measured", "off"), tuple(formats)),
            Table(("model", "mean error (least to largest)"), tuple(means)),
            Table(
                ("worst tensors", "error", "least that NF4 allows", "over Gaussian"),
                tuple(tensors),
            ),
        ),
        figures,
    )


def _spread(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.5f} ({min(values):.5f} to {max(values):.5f})"


def _logits(columns: dict[str, logits.Result], settings: Settings) -> Section:
    base = columns[BF16]
    found = {name: logits.summary(each, base, settings) for name, each in columns.items()}
    others = {name: each for name, each in found.items() if name != BF16}
    rows = (
        ("perplexity", *(_interval(each.perplexity, ".2f") for each in found.values())),
        ("over that of bf16", *(_interval(each.ratio, ".4f") for each in found.values())),
        ("KL from bf16, nats a token", *(_interval(each.kl, ".4f") for each in found.values())),
        ("same likeliest token", *(_interval(each.agreement, ".1%") for each in found.values())),
    )
    bars = {
        "perplexity over bf16": [_bar(name, each.ratio) for name, each in others.items()],
        "KL, nats a token": [_bar(name, each.kl) for name, each in others.items()],
        "same likeliest token": [_bar(name, each.agreement) for name, each in others.items()],
    }
    return Section(
        "Logits: what the model says of a text",
        f"{sum(base.tokens)} tokens in {len(base.tokens)} pieces; intervals hold 95 % of "
        f"{settings.resamples} bootstrap draws of pieces.",
        (Table(("", *_titles(columns)), rows),),
        (Figure("logits", bar_plot(bars, "ratio, nats or share"), "With 95 % intervals."),),
    )


def _interval(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def _bar(name: str, interval: Interval) -> Bar:
    return Bar(TITLES[name], interval.value, interval.low, interval.high)


def _training(columns: dict[str, training.Result], settings: Settings) -> Section:
    base = columns[BF16]
    every = {name: each.losses for name, each in columns.items()}
    answers = {name: each.answer_losses for name, each in columns.items()}
    off = {name: training.differences(each, base.losses) for name, each in every.items()}
    rows = (
        *_loss_rows("every token", every),
        *_loss_rows("the answers", answers),
        *_score_rows({name: c.likelihoods for name, c in columns.items()}, settings, BF16),
    )
    percent = {
        TITLES[name]: [value * 100 for value in each] for name, each in off.items() if name != BF16
    }
    return Section(
        "Training: the same LoRA run",
        f"{len(base.losses)} steps of {settings.batch} sorites, on the loss of every token, that "
        "of the answers alone recorded beside it; the adapter is then scored on Carroll's forms, "
        "in words that it was not trained on.",
        (Table(("", *_titles(columns)), rows),),
        (
            Figure(
                "training",
                line_plot(_titled(every), "step", "loss, nats"),
                "Loss of every token, side by side.",
            ),
            Figure(
                "training_answers",
                line_plot(_titled(answers), "step", "loss, nats"),
                "Loss of the answers, side by side.",
            ),
            Figure(
                "training_difference",
                line_plot(percent, "step", "percent of the loss in bf16"),
                "Loss of every token, difference from bf16, step by step.",
            ),
        ),
    )


def _titled(columns: dict[str, Any]) -> dict[str, Any]:
    return {TITLES[name]: each for name, each in columns.items()}


def _loss_rows(of: str, losses: Mapping[str, Sequence[float]]) -> list[tuple[str, ...]]:
    """Means and differences from bf16 of one kind of loss, over all steps and the last quarter."""
    base = losses[BF16]
    last = len(base) // 4 or 1
    off = {name: training.differences(each, base) for name, each in losses.items()}
    return [
        (f"loss of {of}, mean of all steps", *(f"{_mean(each):.4f}" for each in losses.values())),
        ("over bf16", *(f"{training.rise(each, base):+.2%}" for each in losses.values())),
        (f"mean of the last {last}", *(f"{_mean(each[-last:]):.4f}" for each in losses.values())),
        (
            "over bf16",
            *(f"{training.rise(each[-last:], base[-last:]):+.2%}" for each in losses.values()),
        ),
        (
            "step by step over bf16, mean",
            *(f"{_mean(each):+.2%}" for each in off.values()),
        ),
    ]


def _mean(values: Sequence[float]) -> float:
    return mean_and_error(values)[0]


def _score_rows(
    rows: Mapping[str, carroll.Rows], settings: Settings, base: str
) -> list[tuple[str, ...]]:
    large = {name: mean_and_error(chosen(each)) for name, each in rows.items()}
    apart = {name: carroll.against(each, rows[base]) for name, each in rows.items()}
    margin = {name: mean_and_error(carroll.margins(each)) for name, each in rows.items()}
    return [
        ("Carroll-16, right of 16", *(str(_count16(each, settings)) for each in rows.values())),
        ("Carroll-58, share right", *(_pair(each, ".1%") for each in large.values())),
        (
            f"Carroll-58, apart from {TITLES[base]}",
            *(_pair((each.mean, each.error), "+.1%") for each in apart.values()),
        ),
        ("margin of the right answer, nats", *(_pair(each, "+.3f") for each in margin.values())),
    ]


def _count16(rows: carroll.Rows, settings: Settings) -> int:
    return carroll.count16(rows, settings.renderings)


def _pair(pair: tuple[float, float], form: str) -> str:
    error = form.removeprefix("+")
    return f"{pair[0]:{form}} ± {pair[1]:{error}}"


def _carroll(columns: dict[str, carroll.Result], settings: Settings) -> Section:
    rows = {name: each.likelihoods for name, each in columns.items()}
    base = columns[BF16]
    table = (
        *_score_rows(rows, settings, BF16),
        (
            "keyword score of free answers",
            *(_pair(mean_and_error(each.keywords), ".3f") for each in columns.values()),
        ),
    )
    items = problems(settings.renderings, settings.seed)
    small = [items[i] for i in carroll16(settings.renderings)]
    answers = tuple(
        (item.question, item.answer, *(columns[name].answers[i] for name in (BF16, OURS)))
        for i, item in enumerate(small[:3])
    )
    bars = {
        "Carroll-16": [
            Bar(TITLES[name], _count16(each, settings) / 16) for name, each in rows.items()
        ],
        f"Carroll-58, {len(base.likelihoods)} problems": [
            _with_error(name, chosen(each)) for name, each in rows.items()
        ],
    }
    return Section(
        "Carroll: sorites",
        f"{len(base.likelihoods)} problems, every one with a right conclusion and three that do "
        f"not follow; guessing gives {CHANCE:.0%}. ± is one standard error, of paired "
        "differences where two models are compared.",
        (
            Table(("", *_titles(columns)), table),
            Table(
                ("problem", "right", f"written in {TITLES[BF16]}", f"in {TITLES[OURS]}"), answers
            ),
        ),
        (
            Figure(
                "carroll",
                bar_plot(bars, "share chosen rightly", CHANCE),
                "Right choices, with two standard errors; dotted: guessing.",
            ),
        ),
    )


def _with_error(name: str, right: Sequence[int]) -> Bar:
    mean, error = mean_and_error(right)
    return Bar(TITLES[name], mean, mean - 2 * error, mean + 2 * error)


def _speed(columns: dict[str, Any], settings: Settings) -> Section:
    def row(label: str, show: Callable[[Any], str]) -> tuple[str, ...]:
        return (label, *(show(each) for each in columns.values()))

    rows = (
        row("load, seconds", lambda c: f"{c.load_seconds:.2f}"),
        row("generation, tokens a second", lambda c: f"{c.generation:.1f}"),
        row("prefill, tokens a second", lambda c: f"{c.prefill:.0f}"),
        row("LoRA step, seconds", lambda c: f"{c.step_seconds:.3f}"),
        row("linear layers, MB", lambda c: f"{c.linear_bytes / 1e6:.1f}"),
        row("peak memory at inference, MB", lambda c: f"{c.peak_inference / 1e6:.0f}"),
        row("peak memory with training, MB", lambda c: f"{c.peak_training / 1e6:.0f}"),
    )
    base = columns[BF16]
    bars = {
        "generation": [Bar(TITLES[n], c.generation / base.generation) for n, c in columns.items()],
        "prefill": [Bar(TITLES[n], c.prefill / base.prefill) for n, c in columns.items()],
        "LoRA steps a second": [
            Bar(TITLES[n], base.step_seconds / c.step_seconds) for n, c in columns.items()
        ],
    }
    return Section(
        "Speed and memory",
        f"One sequence; prefill of {settings.prefill_tokens} tokens, {settings.generated_tokens} "
        "written; LoRA steps of 4 x 128 tokens. Memory is what torch held on a GPU, else the "
        "whole process.",
        (Table(("", *_titles(columns)), rows),),
        (Figure("speed", bar_plot(bars, "times bf16", 1.0), "Speed relative to bf16."),),
    )


_SECTIONS: dict[str, Callable[[dict[str, Any], Settings], Section]] = {
    "roundtrip": _roundtrip,
    "logits": _logits,
    "training": _training,
    "carroll": _carroll,
    "speed": _speed,
}
