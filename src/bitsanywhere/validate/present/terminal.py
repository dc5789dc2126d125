"""Outcomes as lines of text."""

from __future__ import annotations

from bitsanywhere.validate.plan import Line
from bitsanywhere.validate.run import Outcome


def told(line: Line) -> str:
    """A line's figures: measured, allowed, bitsandbytes'."""
    peer = "" if line.peer is None else f"; bitsandbytes {line.peer:.4g}"
    return f"{line.name}: {line.measured:.4g} (allowed {line.allowed:.4g}{peer})"


def summary(outcome: Outcome) -> str:
    """The pass lines of a suite, with the same figures for bitsandbytes beside them."""
    again = ", measured before" if outcome.reused else ""
    rows = [f"{outcome.suite} ({outcome.seconds:.0f} s{again})"]
    for line in outcome.lines:
        rows.append(f"  {'ok  ' if line.passed else 'MISS'} {told(line)}")
    rows += [f"  not measured: {name}: {why}" for name, why in outcome.errors.items()]
    return "\n".join(rows)
