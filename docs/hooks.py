"""Pages that are generated while the site is built: the support matrix, the validation results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitsanywhere.arch.support import load, rows
from bitsanywhere.cli.matrix import as_markdown

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SUPPORT_PAGE, VALIDATION_PAGE = "support-matrix.md", "validation.md"
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
    found = sorted(RESULTS.glob("validate_*.json"))
    parts = [validation(path.stem, json.loads(path.read_text())) for path in found]
    parts += [llama(json.loads(path.read_text())) for path in sorted(RESULTS.glob("llama_*.json"))]
    content = VALIDATION_HEAD + "\n".join(parts)
    files.append(File.generated(config, VALIDATION_PAGE, content=content))
    for path in sorted(RESULTS.glob("validate_*.svg")):
        plot = File.generated(config, f"validation/{path.name}", content=path.read_text())
        files.append(plot)
    return files


def validation(stem: str, content: dict[str, Any]) -> str:
    """One kept run: the pass lines, tables and plots of every suite."""
    machine = content["suites"][-1]["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    reference = f" Reference: {content['reference']}." if content["reference"] else ""
    lines = [
        f"## {content['model']}, {machine['device']}\n",
        f"{versions}; {machine['date']}.{reference}\n",
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
