"""Why a line was missed, as far as the other columns of the same suite tell."""

from __future__ import annotations

import math

from bitsanywhere.validate import carroll
from bitsanywhere.validate.plan import BF16, OURS, Line
from bitsanywhere.validate.run import Outcome
from bitsanywhere.validate.scoring import chosen
from bitsanywhere.validate.statistics import mean_and_error
from bitsanywhere.validate.training import rise

CHANCE = 0.25
PROBLEMS = 16
ALIKE = 0.1


def reason(outcome: Outcome) -> str:
    """A sentence or two on the misses of a suite; empty if there are none, or nothing tells."""
    if outcome.passed:
        return ""
    if outcome.suite == "logits":
        return _logits(outcome)
    if outcome.suite == "training":
        return _training(outcome) + _guessing(outcome, "After training the bf16 model still")
    if outcome.suite == "carroll":
        return _guessing(outcome, "In bf16 the model")
    return ""


def _logits(outcome: Outcome) -> str:
    price, kernels = outcome.lines
    if price.passed or not kernels.passed:
        return ""
    return (
        "The price is the format's, not the kernels': the same 4-bit weights cost as much when "
        "torch multiplies them." + _like_the_peer(price)
    )


def _training(outcome: Outcome) -> str:
    missed = [line for line in outcome.lines[:2] if not line.passed]
    if not missed:
        return ""
    base, ours = (outcome.columns[name].losses for name in (BF16, OURS))
    last = len(base) // 4 or 1
    first, late = rise(ours[:1], base[:1]), rise(ours[-last:], base[-last:])
    return (
        f"The frozen 4-bit weights start {first:+.2%} from bf16's loss of every token, before "
        f"anything is learned; over the last {last} steps {late:+.2%} is left."
        + _like_the_peer(missed[0])
    )


def _like_the_peer(line: Line) -> str:
    """What bitsandbytes did, if it did about the same."""
    if line.peer is None or abs(line.measured - line.peer) > ALIKE * line.measured:
        return ""
    return f" Stock bitsandbytes measures the same: {line.peer:.4g}."


def _guessing(outcome: Outcome, subject: str) -> str:
    rows: carroll.Rows = outcome.columns[BF16].likelihoods
    share, error = mean_and_error(chosen(rows))
    if share - 2 * error > CHANCE:
        return ""
    apart = math.sqrt(2 * PROBLEMS * CHANCE * (1 - CHANCE))
    return (
        f" {subject} does no better than guessing ({share:.1%} of {len(rows)} problems, "
        f"{CHANCE:.0%} by chance): a difference shows a leaning to some wordings, not logic lost. "
        f"Two models that guess are apart by {apart:.1f} problems of {PROBLEMS} (one standard "
        "deviation)."
    )
