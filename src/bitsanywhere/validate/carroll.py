"""Suite `carroll`: the sorites of Lewis Carroll's Symbolic Logic (1896), worded anew.

Carroll-16 is 16 of his 58 forms in one wording each, Carroll-58 all of them in several. A problem
offers the right conclusion and three that do not follow; the model's choice is the likeliest per
token. Carroll-16 is also answered in free writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitsanywhere.validate.plan import BF16, OURS, PEER, REFERENCE, TITLES, Line, Settings
from bitsanywhere.validate.scoring import Reader, all_likelihoods, chosen, write
from bitsanywhere.validate.sorites import carroll, carroll16
from bitsanywhere.validate.statistics import Difference, paired
from bitsanywhere.validate.subject import Subject

COLUMNS = (BF16, OURS, REFERENCE, PEER)
Rows = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Result:
    """One model's answers.

    Attributes:
        likelihoods: of the four answers to each problem, the right one first; per token, in nats.
        answers: freely written ones to Carroll-16.
        keywords: their keyword scores; see `Item.keyword_score`.
    """

    likelihoods: tuple[tuple[float, ...], ...]
    answers: tuple[str, ...]
    keywords: tuple[float, ...]


def measure(subject: Subject) -> Result:
    """Puts every problem to the column's model."""
    settings = subject.settings
    reader, model = Reader(subject.tokenizer()), subject.model()
    items = carroll(settings.renderings, settings.seed)
    rows = all_likelihoods(model, reader, items, f"carroll, {subject.column}")
    small = [items[i] for i in carroll16(settings.renderings)]
    answers = write(model, reader, small, settings.written_tokens)
    scores = tuple(item.keyword_score(answer) for item, answer in zip(small, answers))
    return Result(rows, answers, scores)


def count16(rows: Rows, renderings: int) -> int:
    """Problems of Carroll-16 that were chosen rightly."""
    right = chosen(rows)
    return sum(right[i] for i in carroll16(renderings))


def margins(rows: Rows) -> list[float]:
    """How much likelier the right answer is than the likeliest wrong one, in nats a token."""
    return [row[0] - max(row[1:]) for row in rows]


def against(rows: Rows, base: Rows) -> Difference:
    """Paired difference of the shares of Carroll-58 that were chosen rightly."""
    return paired(chosen(rows), chosen(base))


def small_and_large(
    rows: Mapping[str, Rows], base: str, renderings: int, prefix: str = ""
) -> tuple[Line, Line]:
    """Two lines: within one problem on Carroll-16, within two standard errors on Carroll-58."""
    ours, other = against(rows[OURS], rows[base]), rows[base]
    peer = rows.get(PEER)

    def apart(given: Rows) -> int:
        return abs(count16(given, renderings) - count16(other, renderings))

    return (
        Line(
            f"{prefix}Carroll-16: problems apart from {TITLES[base]}",
            apart(rows[OURS]),
            1,
            "one problem of 16",
            apart(peer) if peer else None,
        ),
        Line(
            f"{prefix}Carroll-58: share of right choices apart from {TITLES[base]}",
            abs(ours.mean),
            2 * ours.error,
            f"two standard errors of the paired difference, {len(other)} problems",
            abs(against(peer, other).mean) if peer else None,
        ),
    )


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """Against bf16, and against the reference where there is one."""
    rows = {name: result.likelihoods for name, result in columns.items()}
    bases = [name for name in (BF16, REFERENCE) if name in rows]
    lines = [small_and_large(rows, base, settings.renderings) for base in bases]
    return tuple(line for pair in lines for line in pair)
