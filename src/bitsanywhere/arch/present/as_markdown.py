"""The audit as Markdown, for a pull request or a job summary."""

from __future__ import annotations

from collections.abc import Iterable

from bitsanywhere.arch.explain import explain
from bitsanywhere.arch.present.as_table import printable
from bitsanywhere.arch.report import DeviceReport, FileReport, Report
from bitsanywhere.arch.rules import Source


def as_markdown(report: Report) -> str:
    """A table of verdicts for each file, and the reasons under it."""
    return "\n".join(line for file in report.files for line in _file(file, report)) + "\n"


def _file(file: FileReport, report: Report) -> Iterable[str]:
    cuda = f"CUDA {report.cuda[0]}.{report.cuda[1]}" if report.cuda else "any CUDA"
    yield f"### {cell(file.path)}, {cuda}"
    yield ""
    yield "| device | capability | covered | verdict | via | library |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in file.devices:
        found = each.finding
        row = (
            found.device.name,
            found.device.capability,
            "yes" if found.covered else "NO",
            found.verdict,
            found.via or "-",
            found.library.rsplit("/", 1)[-1] or "-",
        )
        yield f"| {' | '.join(cell(text) for text in row)} |"
    yield ""
    for each in file.devices:
        if not each.finding.covered:
            yield from _reasons(each, file)


def _reasons(report: DeviceReport, file: FileReport) -> Iterable[str]:
    """Why one device is not covered."""
    found = report.finding
    words = explain(found, file)
    yield f"**{cell(found.device.name)}** is not covered ({words.evidence}). {cell(words.reason)}"
    yield ""
    if words.error_text:
        yield f"- error: {cell(words.error_text)}"
    if words.fix:
        yield f"- fix: {cell(words.fix)}"
    for label, sources in (("source", words.sources), ("contrary", words.contrary)):
        for each in sources:
            yield f"- {label}: {_cite(each)}"
    yield ""


def _cite(source: Source) -> str:
    return f"[{cell(source.title)}]({source.url}), {source.evidence}: {cell(source.says)}"


def cell(text: str) -> str:
    """Text that cannot end a table cell or turn into markup."""
    safe = printable(text).replace("\\", "\\\\")
    for special in "|<>[]`*_":
        safe = safe.replace(special, f"\\{special}")
    return safe
