"""Draws the committed results: ``python -m benchmarks.plots`` writes SVG beside the data."""

from __future__ import annotations

import json
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from benchmarks.measure import RESULTS

# The same data draw the same file.
matplotlib.rcParams["svg.hashsalt"] = "bitsanywhere"
COLOURS = {"bitsanywhere": "#0b6e4f", "bitsandbytes": "#c8553d", "cublas bfloat16": "#6b7a8f"}


def gemm_plot(results: dict[str, Any], name: str) -> None:
    """A 4-bit product against M: above, the bytes that must move over time as a fraction of the
    copy bandwidth; below, the time. bitsandbytes and cuBLAS beside it."""
    rows = [row for row in results["rows"] if row["case"].startswith("gemm_4bit")]
    shapes = sorted({(row["n"], row["k"]) for row in rows}, reverse=True)
    figure, axes = plt.subplots(
        2, len(shapes), figsize=(4.2 * len(shapes), 6.4), layout="constrained", squeeze=False
    )
    for column, (n, k) in zip(axes.T, shapes):
        plain = [row for row in rows if (row["n"], row["k"]) == (n, k) and not row["nested"]]
        for axis, quantity in zip(column, ("fraction", "microseconds")):
            for library, colour in COLOURS.items():
                points = [(r["m"], r[quantity][library]) for r in plain if library in r[quantity]]
                if points:
                    axis.plot(*zip(*points), "o-", color=colour, label=library, ms=4)
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3, which="both")
        column[0].set_ylim(0, 1)
        column[0].set_title(f"{n} x {k}", fontsize=10)
        column[1].set_yscale("log")
        column[1].set_xlabel("rows of the input, M")
    axes[0][0].set_ylabel("fraction of the copy bandwidth")
    axes[1][0].set_ylabel("microseconds")
    axes[1][0].legend(fontsize=8)
    figure.suptitle(f"4-bit matrix product, {results['environment']['device']}", fontsize=11)
    figure.savefig(RESULTS / f"{name}_gemm.svg", metadata={"Date": None})
    plt.close(figure)


def ratio_plot(results: dict[str, Any], name: str) -> None:
    """How many times bitsandbytes' time ours fits into, a bar a case."""
    rows = results["rows"][::-1]
    figure, axis = plt.subplots(figsize=(7.5, 0.32 * len(rows) + 1), layout="constrained")
    bars = axis.barh(
        [row["case"] for row in rows],
        [row["peer_over_ours"] for row in rows],
        color=COLOURS["bitsanywhere"],
    )
    axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axis.axvline(1, color=COLOURS["bitsandbytes"], lw=1)
    axis.set_xscale("log")
    axis.set_xlabel("bitsandbytes' time over ours")
    axis.tick_params(axis="y", labelsize=8)
    axis.set_title(results["environment"]["device"], fontsize=9)
    figure.savefig(RESULTS / f"{name}_ratio.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draws every result file that is there."""
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text())
        if path.stem == "cpu":
            ratio_plot(results, path.stem)
        elif path.stem.startswith("gpu_"):
            gemm_plot(results, path.stem)


if __name__ == "__main__":
    main()
