"""`bitsanywhere matrix`: on which architectures this library was compiled and run in tests."""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence

from bitsanywhere.arch.support import Row, as_dict, load, rows, told

HEADER = ("architecture", "devices", "compiled in tests", "run on hardware")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bitsanywhere: support matrix</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #8886; }}
.tested {{ background: light-dark(#c9ead1, #1f5130); }}
.failed {{ background: light-dark(#f7c9c6, #6d2420); }}
</style></head><body>
<h1>Support matrix</h1>
<table>
{rows}
</table>
</body></html>
"""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = __doc__
    parser.add_argument(
        "--format",
        choices=("markdown", "html", "json"),
        default="markdown",
        help="default: %(default)s",
    )


def execute(args: argparse.Namespace) -> int:
    """Prints the matrix of the records that ship with this version."""
    matrix = rows(load())
    present = {"markdown": as_markdown, "html": as_html, "json": as_json}[args.format]
    sys.stdout.write(present(matrix))
    return 0


def as_json(matrix: Sequence[Row]) -> str:
    """The matrix as JSON."""
    return json.dumps(as_dict(matrix), indent=2) + "\n"


def as_markdown(matrix: Sequence[Row]) -> str:
    """The matrix as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER), *(_cells(each) for each in matrix)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def as_html(matrix: Sequence[Row]) -> str:
    """The matrix as a page."""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in HEADER) + "</tr>"]
    for row in matrix:
        looks = ("", "", _look(row.compiled), _look(row.run))
        cells = zip(_cells(row), looks, strict=True)
        data = "".join(f'<td class="{look}">{html.escape(text)}</td>' for text, look in cells)
        lines.append(f"<tr>{data}</tr>")
    return PAGE.format(rows="\n".join(lines))


def _cells(row: Row) -> tuple[str, ...]:
    return row.arch, ", ".join(row.devices) or "-", told(row.compiled), told(row.run)


def _look(records: Sequence) -> str:
    """The colour of a cell."""
    if not records:
        return ""
    return "failed" if any(each.failed for each in records) else "tested"
