"""Outcomes as lines of text."""

from __future__ import annotations

from bitsanywhere.validate.run import Outcome


def summary(outcome: Outcome) -> str:
    """The pass lines of a suite, with the same figures for bitsandbytes beside them."""
    again = ", measured before" if outcome.reused else ""
    rows = [f"{outcome.suite} ({outcome.seconds:.0f} s{again})"]
    for line in outcome.lines:
        verdict = "ok  " if line.passed else "MISS"
        peer = "" if line.peer is None else f"; bitsandbytes {line.peer:.4g}"
        rows.append(
            f"  {verdict} {line.name}: {line.measured:.4g} (allowed {line.allowed:.4g}{peer})"
        )
    rows += [f"  not measured: {name}: {why}" for name, why in outcome.errors.items()]
    return "\n".join(rows)
