"""Why a line was missed, as far as the other columns of the same suite tell."""

from __future__ import annotations

from bitsanywhere.validate import carroll
from bitsanywhere.validate.plan import BF16, PEER, Line
from bitsanywhere.validate.run import Outcome
from bitsanywhere.validate.scoring import chosen
from bitsanywhere.validate.statistics import mean_and_error

CHANCE = 0.25
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
        "torch multiplies them in bf16." + _like_the_peer(price)
    )


def _training(outcome: Outcome) -> str:
    loss = outcome.lines[0]
    if loss.passed or PEER not in outcome.columns:
        return ""
    return "The frozen 4-bit weights start from another loss than bf16's." + _like_the_peer(loss)


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
    return (
        f" {subject} does no better than guessing ({share:.1%} of {len(rows)} problems, "
        f"{CHANCE:.0%} by chance): a difference shows a leaning to some wordings, not logic lost."
    )
