"""The page of speeds, generated from `benchmarks/results` while the site is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PAGE = "speed.md"
HEAD = """\
# Speed

Generated from the files in `benchmarks/results`, which the benchmarks write themselves (`make
bench`). Every row of a table was measured in one run. The libraries took turns on the CPU and,
since 2026-11-29, in the GPU's table of products and codecs; elsewhere one followed the other. A
fraction is the bytes that must move, over the time, over the copy bandwidth of the same run.

"""
# Shown on a page of their own.
ELSEWHERE = ("validate_", "llama_", "optimizer_convergence_")


def on_files(files: Any, config: Any) -> Any:
    """Add the page and its plots."""
    from mkdocs.structure.files import File

    parts = []
    for path in sorted(RESULTS.glob("*.json")):
        if path.name.startswith(ELSEWHERE):
            continue
        plots = sorted(RESULTS.glob(f"{path.stem}_*.svg"))
        parts.append(section(path.stem, json.loads(path.read_text()), [p.name for p in plots]))
        for plot in plots:
            files.append(File.generated(config, f"speed/{plot.name}", content=plot.read_text()))
    files.append(File.generated(config, PAGE, content=HEAD + "\n".join(parts)))
    return files


def section(name: str, results: dict[str, Any], plots: list[str]) -> str:
    """One result file: where it was measured, its plots, its rows, and what else it says."""
    facts = dict(results["environment"])
    versions = facts.pop("versions", {})
    where = ", ".join(f"{key} {value}" for key, value in {**facts, **versions}.items())
    lines = [f"## {name.replace('_', ' ')}\n", f"{where}.\n"]
    lines += [f"![{plot}](speed/{plot})\n" for plot in plots]
    rows = [flat(possible(row)) for row in results.get("rows", [])]
    header = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        cells = [header, ["---"] * len(header)]
        cells += [[shown(row.get(key, "")) for key in header] for row in rows]
        lines += [f"| {' | '.join(row)} |" for row in cells]
    rest = {k: v for k, v in results.items() if k not in ("environment", "rows")}
    lines += ["", *(f"- {key}: {shown(value)}" for key, value in flat(rest).items()), ""]
    return "\n".join(lines)


def possible(row: dict[str, Any]) -> dict[str, Any]:
    """A row without times of work that missed the measured graph: it seems faster than memory."""
    wrong = {name for name, part in row.get("fraction", {}).items() if part > 1}
    return {
        key: {k: v for k, v in value.items() if k not in wrong}
        if isinstance(value, dict)
        else value
        for key, value in row.items()
    }


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by commas; of times only the median is kept."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix}, {key}" if prefix else key
        if isinstance(value, dict) and "median" in value:
            found[name] = value["median"]
        elif isinstance(value, dict):
            found |= flat(value, name)
        else:
            found[name] = value
    return found


def shown(value: Any) -> str:
    """A cell's text: numbers to four digits."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
