"""Renews the tables in README.md from ``benchmarks/results``: ``python -m benchmarks.tables``.

Speed by `table`; what `bitsanywhere validate` found by `proof`.

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; what is between is replaced. Only
some rows are shown there; the documentation site shows all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).parents[1] / "README.md"
# For each table: files, the rows of each that are shown, and the unit of its times.
TABLES = {
    "cpu": (
        ("cpu.json", r"(de)?quantize_4bit|linear (training|eval) M=(1|64|256) ", "milliseconds"),
        ("optimizers_cpu.json", r"AdamW8bit.*, 1 tensors", "milliseconds"),
        ("int8_cpu.json", r"linear threshold=6 M=(1|64|256) 4096x4096", "milliseconds"),
    ),
    "gpu": (
        (
            "gpu_*.json",
            r"(de)?quantize_(4bit|blockwise)|gemm_4bit M=(1|8|16|64) (28672x8192|4096x4096)$"
            r"|linear forward and input gradient|eager (LinearNF4|matmul_4bit)",
            "microseconds",
        ),
        ("optimizers_gpu_*.json", r"(AdamW|Lion)8bit", "milliseconds"),
        ("int8_gpu_*.json", r".* M=(1|16|256|2048) 4096x4096 threshold 6", "microseconds"),
    ),
}
OURS, PEER = "bitsanywhere", "bitsandbytes"
SHORT = {"milliseconds": "ms", "microseconds": "us"}


def table(name: str) -> str:
    """One table, of the newest files: ours, the peer's, and what else was measured beside them."""
    lines = [f"| {name.upper()} | {OURS} | {PEER} | beside them |", "|---|---|---|---|"]
    sources: dict[str, list[str]] = {}
    for pattern, shown, unit in TABLES[name]:
        kind = pattern.removesuffix(".json").removesuffix("_*").replace("_", " ")
        files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(pattern))]
        results = max(files, key=lambda found: found["environment"]["date"])
        sources.setdefault(source(results), []).append(kind)
        rows = [row for row in results["rows"] if re.match(shown, case(row))]
        if not rows:
            raise SystemExit(f"{pattern}: no row is called {shown!r}")
        for row in rows:
            times = {k: v for k, v in row[unit].items() if possible(row, k)}
            lines.append(f"| {' | '.join([case(row), *cells(times, SHORT[unit])])} |")
    named = [f"{', '.join(kinds)}: {text}\n" for text, kinds in sources.items()]
    return "\n".join([*lines, "", *(named if len(named) > 1 else sources)]).rstrip()


def possible(row: dict[str, Any], library: str) -> bool:
    """Whether a time is one: work that missed the measured graph seems faster than memory."""
    return row.get("fraction", {}).get(library, 0) <= 1


def case(row: dict[str, Any]) -> str:
    """What a row measured, in words."""
    if "dtype" not in row:
        return row["case"]
    return f"{row['case']} {row['dtype']}, {row['tensors']} tensors, {row['elements']} elements"


def cells(times: dict[str, Any], unit: str) -> Iterator[str]:
    """The time of each library; a median where there are several figures."""
    plain = {k: v["median"] if isinstance(v, dict) else v for k, v in times.items()}
    others = (f"{n.replace('_', ' ').strip()} {digits(t)} {unit}" for n, t in plain.items()
              if n not in (OURS, PEER))  # fmt: skip
    for library in (OURS, PEER):
        yield f"{digits(plain[library])} {unit}" if library in plain else ""
    yield ", ".join(others)


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def source(results: dict[str, Any]) -> str:
    """One line: where, with which versions and when this was measured."""
    facts = results["environment"]
    wanted = ("torch", "bitsandbytes")
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in wanted)
    threads = f", {facts['threads']} threads" if "threads" in facts else ""
    return f"{facts['device']}{threads}; {versions}; {facts['date']}."


def proof() -> str:
    """Lines that hold by suite, a column a kept run of `validate`; then those that do not."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("validate_*.json"))]
    titles = [run["suites"][-1]["machine"]["device"] for run in runs]
    counts: dict[str, list[str]] = {}
    missed = []
    for i, run in enumerate(runs):
        for suite in run["suites"]:
            lines = suite["lines"]
            row = counts.setdefault(suite["suite"], [""] * len(runs))
            row[i] = f"{sum(line['passed'] for line in lines)} of {len(lines)}"
            missed += [f"- {titles[i]}, {told(line)}" for line in lines if not line["passed"]]
    rows = [f"| lines that hold | {' | '.join(titles)} |", f"|---|{'---|' * len(runs)}"]
    rows += [f"| {suite} | {' | '.join(row)} |" for suite, row in counts.items()]
    return "\n".join([*rows, "", "What does not hold:", "", *missed])


def told(line: dict[str, Any]) -> str:
    """A pass line's figures in words."""
    peer = "" if line["peer"] is None else f", bitsandbytes {line['peer']:.3g}"
    return f"{line['name']}: {line['measured']:.3g} (allowed {line['allowed']:.3g}{peer})"


def replace(text: str, name: str, content: str) -> str:
    """``text`` with the table called ``name`` renewed; raises if the markers are not there."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    renewed, count = pattern.subn(lambda m: f"{m[1]}{content}\n{m[2]}", text)
    if count != 1:
        raise SystemExit(f"{README.name} has {count} places for the table {name!r}, not 1")
    return renewed


def main() -> None:
    """Renews every table."""
    text = README.read_text()
    for name in TABLES:
        text = replace(text, name, table(name))
    text = replace(text, "proof", proof())
    README.write_text(text)


if __name__ == "__main__":
    main()
