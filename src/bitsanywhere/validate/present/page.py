"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bitsanywhere.validate.plan import Plan
from bitsanywhere.validate.present.sections import Figure, Table, section
from bitsanywhere.validate.present.terminal import told
from bitsanywhere.validate.run import Outcome

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
         border-bottom: 1px solid #8886; white-space: pre-line; }
.small, figcaption { opacity: .75; font-size: .88rem; }
.yes { color: #1a7f37; font-weight: 600; } .no { color: #d1242f; font-weight: 600; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
"""


def page(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """The whole page; it loads nothing from anywhere."""
    body = [_head(plan, outcomes), *(_suite(plan, outcome) for outcome in outcomes)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(plan.model.name)} in 4 bits</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _head(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    rows = tuple(
        (
            outcome.suite,
            _verdict(outcome.passed),
            f"{sum(line.passed for line in outcome.lines)} of {len(outcome.lines)}",
            f"{outcome.seconds:.0f} s",
        )
        for outcome in outcomes
    )
    missed = "".join(
        f"<li>{escape(outcome.suite)}: {escape(told(line))}</li>\n"
        for outcome in outcomes
        for line in outcome.lines
        if not line.passed
    )
    reference = f"; reference: {escape(plan.reference.name)}" if plan.reference else ""
    return (
        f"<h1>{escape(plan.model.name)} in 4 bits, validated</h1>\n"
        f'<p class="small">{_machine(outcomes)}; computed in {plan.settings.dtype}{reference}</p>\n'
        + _table(("suite", "passed", "lines that hold", "took"), rows)
        + (f"\n<p>What does not hold:</p>\n<ul>\n{missed}</ul>" if missed else "")
    )


def _machine(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    facts = outcomes[-1].machine
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return escape(f"{facts['device']}; Python {facts['python']}; {versions}; {facts['date']}")


def _suite(plan: Plan, outcome: Outcome) -> str:
    shown = section(outcome, plan.settings)
    errors = "".join(
        f'<p class="no">{escape(name)} was not measured: {escape(why)}</p>\n'
        for name, why in outcome.errors.items()
    )
    if shown is None:
        return f"<h2>{escape(outcome.suite)}</h2>\n{errors}"
    lines = tuple(
        (
            _verdict(line.passed),
            f"{escape(line.name)}\n<span class='small'>{escape(line.why)}</span>",
            f"{line.measured:.4g}",
            f"{line.allowed:.4g}",
            "" if line.peer is None else f"{line.peer:.4g}",
        )
        for line in outcome.lines
    )
    header = ("passed", "pass line", "measured", "allowed", "bitsandbytes")
    return "\n".join(
        (
            f"<h2>{escape(shown.title)}</h2>\n<p>{escape(shown.text)}</p>{errors}",
            _table(header, lines),
            *(_escaped(table) for table in shown.tables if table.rows),
            *(_figure(figure) for figure in shown.figures),
        )
    )


def _escaped(table: Table) -> str:
    header = tuple(map(escape, table.header))
    return _table(header, tuple(tuple(map(escape, row)) for row in table.rows))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _figure(figure: Figure) -> str:
    return f"<figure>\n{figure.svg}<figcaption>{escape(figure.caption)}</figcaption>\n</figure>"


def _verdict(passed: bool) -> str:
    return '<span class="yes">yes</span>' if passed else '<span class="no">no</span>'
