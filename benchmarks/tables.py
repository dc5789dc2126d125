"""Renews the tables in README.md from ``benchmarks/results``: ``python -m benchmarks.tables``.

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; what is between is replaced.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

README = Path(__file__).parents[1] / "README.md"
GPU_ROWS = re.compile(r"gemm_4bit M=(1|8|16|64|512) (28672x8192|4096x4096)$|linear .*")


def cpu_table(results: dict[str, Any]) -> str:
    """Milliseconds of both libraries on the CPU."""
    lines = ["| CPU | bitsanywhere, ms | bitsandbytes, ms | ratio |", "|---|---|---|---|"]
    for row in results["rows"]:
        times = row["milliseconds"]
        pair = [times[name]["median"] for name in ("bitsanywhere", "bitsandbytes")]
        cells = [row["case"], *(f"{ms:.2f}" for ms in pair), f"{row['peer_over_ours']:.1f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", source(results)])


def gpu_table(results: dict[str, Any]) -> str:
    """Microseconds of both libraries and cuBLAS."""
    libraries = ("bitsanywhere", "bitsandbytes", "cublas bfloat16")
    lines = ["| GPU | bitsanywhere, us | bitsandbytes, us | cuBLAS bf16, us |", "|---|---|---|---|"]
    for row in results["rows"]:
        if GPU_ROWS.match(row["case"]):
            times = row["microseconds"]
            cells = [f"{times[name]:.1f}" if name in times else "" for name in libraries]
            lines.append(f"| {' | '.join([row['case'], *cells])} |")
    return "\n".join([*lines, "", source(results)])


def source(results: dict[str, Any]) -> str:
    """One line: where, with which versions and when this was measured."""
    facts = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    threads = f", {facts['threads']} threads" if "threads" in facts else ""
    return f"{facts['device']}{threads}; {versions}; {facts['date']}."


def replace(text: str, name: str, table: str) -> str:
    """``text`` with the table called ``name`` renewed; raises if the markers are not there."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    renewed, count = pattern.subn(lambda m: f"{m[1]}{table}\n{m[2]}", text)
    if count != 1:
        raise SystemExit(f"{README.name} has {count} places for the table {name!r}, not 1")
    return renewed


def main() -> None:
    """Renews every table whose results are there."""
    text = README.read_text()
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text())
        if path.stem == "cpu":
            text = replace(text, "cpu", cpu_table(results))
        elif path.stem.startswith("gpu_"):
            text = replace(text, "gpu", gpu_table(results))
    README.write_text(text)


if __name__ == "__main__":
    main()
