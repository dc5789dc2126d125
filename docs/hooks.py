"""What is generated while the site is built: the support matrix, the validation results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bitsanywhere.arch.support import load, rows
from bitsanywhere.cli.matrix import as_markdown

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SUPPORT_PAGE, VALIDATION_PAGE = "support-matrix.md", "validation.md"
# Replaced on any page by `overview`.
OVERVIEW_MARK = "<!-- overview of the validation results -->"
SUPPORT_HEAD = """\
# Support matrix

Generated from recorded test runs (`bitsanywhere matrix`); see [For maintainers](maintainers.md).

"""
VALIDATION_HEAD = """\
# Validation results

Generated from the results of [`bitsanywhere validate`](validate.md) that are kept in
`benchmarks/results`. What was missed stands here as it was found.

"""
LLAMA_ROWS = {
    "load, seconds": ("load_seconds", 1, ".2f"),
    "generation, tokens a second": ("generation", 1, ".1f"),
    "prefill, tokens a second": ("prefill", 1, ".0f"),
    "QLoRA step, seconds": ("step_seconds", 1, ".4f"),
    "linear layers, MB": ("linear_bytes", 1e-6, ".0f"),
    "peak memory at inference, MB": ("peak_inference", 1e-6, ".0f"),
    "peak memory with training, MB": ("peak_training", 1e-6, ".0f"),
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the plots on them."""
    from mkdocs.structure.files import File

    support = SUPPORT_HEAD + as_markdown(rows(load()))
    files.append(File.generated(config, SUPPORT_PAGE, content=support))
    parts = [overview()]
    parts += [validation(stem, content) for stem, content in kept("validate").items()]
    parts += [llama(content) for content in kept("llama").values()]
    parts += [convergence(content) for content in kept("optimizer_convergence").values()]
    content = VALIDATION_HEAD + "\n".join(parts)
    files.append(File.generated(config, VALIDATION_PAGE, content=content))
    for path in sorted(RESULTS.glob("validate_*.svg")):
        plot = File.generated(config, f"validation/{path.name}", content=path.read_text())
        files.append(plot)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the overview where a page has the mark for it."""
    return markdown.replace(OVERVIEW_MARK, overview())


def kept(kind: str) -> dict[str, dict[str, Any]]:
    """The result files of a kind by their names without the ending."""
    paths = sorted(RESULTS.glob(f"{kind}_*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def overview() -> str:
    """Every pass line of every kept run of `validate`: which hold, which do not."""
    runs = list(kept("validate").values())
    found = [
        {(suite["suite"], line["name"]): line for suite in run["suites"] for line in suite["lines"]}
        for run in runs
    ]
    rows = [
        [f"{key[0]}: {key[1]}", *(_measured(lines.get(key)) for lines in found)]
        for key in dict.fromkeys(key for lines in found for key in lines)
    ]
    counts = [
        f"{sum(line['passed'] for line in lines.values())} of {len(lines)}" for lines in found
    ]
    titles = [f"{_model(run)}, {run['suites'][-1]['machine']['device']}" for run in runs]
    text = "Measured, then in brackets what is allowed and what stock bitsandbytes measures; bold: "
    return f"{text}missed.\n\n" + table(
        ("pass line", *titles), [["lines that hold", *counts], *rows]
    )


def _model(content: dict[str, Any]) -> str:
    """The model's name; a folder made of a GGUF file ends in a digest."""
    return re.sub(r"-[0-9a-f]{12}$", "", content["model"])


def _measured(line: dict[str, Any] | None) -> str:
    if line is None:
        return ""
    peer = "" if line["peer"] is None else f"; {line['peer']:.3g}"
    text = f"{line['measured']:.3g} ({line['allowed']:.3g}{peer})"
    return text if line["passed"] else f"**{text}**"


def validation(stem: str, content: dict[str, Any]) -> str:
    """One kept run: the pass lines, tables and plots of every suite."""
    machine = content["suites"][-1]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    reference = f" Reference: {content['reference']}." if content["reference"] else ""
    dtype = content.get("settings", {}).get("dtype", "bfloat16")
    lines = [
        f"## {_model(content)}, {machine['device']}\n",
        f"{versions}; {machine['date']}; computed in {dtype}.{reference}\n",
    ]
    for suite in content["suites"]:
        lines.append(f"### {suite['suite']}\n\n{suite.get('text', '')}\n")
        header = ("passed", "pass line", "measured", "allowed", "bitsandbytes")
        lines.append(table(header, [_line(line) for line in suite["lines"]]))
        lines += [f"Not measured: {name}: {why}\n" for name, why in suite["errors"].items()]
        lines += [table(each["header"], each["rows"]) for each in suite.get("tables", [])]
        for name, caption in suite.get("figures", {}).items():
            lines.append(f"![{caption}](validation/{stem}_{name}.svg)\n\n*{caption}*\n")
    return "\n".join(lines)


def llama(content: dict[str, Any]) -> str:
    """The random-weight Llama: a column a library."""
    facts, columns = content["environment"], content["columns"]
    billions = content["parameters"] / 1e9
    measured = {name: found["result"] for name, found in columns.items() if "result" in found}
    body = [
        [label, *(f"{result[key] * unit:{form}}" for result in measured.values())]
        for label, (key, unit, form) in LLAMA_ROWS.items()
    ]
    text = (
        f"## A Llama of {billions:.2f} billion random weights, {facts['device']}\n\n"
        f"Made on the spot; `bitsanywhere quantize` took {content['quantize_seconds']:.1f} s. "
        f"{facts['date']}.\n"
    )
    return "\n".join((text, table(("", *measured), body)))


def convergence(content: dict[str, Any]) -> str:
    """8-bit optimizers beside their 32-bit versions."""
    facts = content["environment"]
    body = [
        [
            row["optimizer"],
            *(f"{row['loss'][bits]:.4f}" for bits in ("32", "8")),
            f"{row['rise']:+.3%} ({', '.join(f'{rise:+.3%}' for rise in row['rises'])})",
            f"{row['held_out_rise']:+.3%}",
            "yes" if row["passed"] else "**no**",
        ]
        for row in content["results"]
    ]
    text = (
        f"## 8-bit optimizers, {content['start']} weights, {facts['device']}\n\n"
        f"{content['steps']} steps of {content['rows']} x {content['length']} tokens, computed in "
        f"{content['arithmetic']}; mean loss of the last {content['last']} steps over "
        f"{content['seeds']} orders of the batches; {facts['date']}. Passed if 8 bits are within "
        f"{content['allowed']:.0%} of 32.\n"
    )
    header = ("optimizer", "32 bits", "8 bits", "rise (each order)", "on held-out text", "passed")
    return "\n".join((text, table(header, body)))


def _line(line: dict[str, Any]) -> list[str]:
    peer = "" if line["peer"] is None else f"{line['peer']:.4g}"
    passed = "yes" if line["passed"] else "**no**"
    name = f"{line['name']}; {line['why']}"
    return [passed, name, f"{line['measured']:.4g}", f"{line['allowed']:.4g}", peer]


def table(header: Any, body: Any) -> str:
    """A Markdown table; line breaks within a cell are kept."""
    text = [list(header), ["---"] * len(header), *body]
    cells = [[str(cell).replace("|", "\\|").replace("\n", "<br/>") for cell in row] for row in text]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"
