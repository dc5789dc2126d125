"""The audit as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitsanywhere.arch.explain import Explanation, explain
from bitsanywhere.arch.model import REGIONS, Library, compressions, names
from bitsanywhere.arch.report import FileReport, Report
from bitsanywhere.arch.rules import Source


def as_table(report: Report) -> str:
    """What each file holds, the verdict for each device, and why where it is not covered."""
    return "\n".join(line for file in report.files for line in _file(file, report)) + "\n"


def _file(file: FileReport, report: Report) -> Iterable[str]:
    cuda = f"CUDA {report.cuda[0]}.{report.cuda[1]}" if report.cuda else "any CUDA"
    yield f"{printable(file.path)}  ({cuda})"
    yield ""
    yield from _columns(
        ("library", "where", "machine code", "PTX", "compression"),
        [row for each in file.libraries for row in _holds(each)],
    )
    yield ""
    yield from _columns(
        ("device", "capability", "covered", "verdict", "via", "library"),
        [
            (
                each.finding.device.name,
                each.finding.device.capability,
                "yes" if each.finding.covered else "NO",
                each.finding.verdict,
                each.finding.via or "-",
                each.finding.library.rsplit("/", 1)[-1] or "-",
            )
            for each in file.devices
        ],
    )
    told: dict[str, list[str]] = {}
    for each in file.devices:
        if not each.finding.covered:
            words = explain(each.finding, file)
            told.setdefault("\n".join(_reasons(words)), []).append(each.finding.device.name)
    for reasons, devices in told.items():
        yield ""
        yield f"{', '.join(devices)}: not covered"
        yield reasons
    yield ""


def _holds(library: Library) -> Iterable[tuple[str, ...]]:
    """One row for each region of a library that holds something."""
    for name in REGIONS:
        containers = library.region(name)
        if containers:
            yield (
                library.path.rsplit("/", 1)[-1],
                name,
                " ".join(each.removeprefix("sm_") for each in names(containers, "sass")) or "-",
                " ".join(each.removeprefix("compute_") for each in names(containers, "ptx")) or "-",
                " ".join(compressions(containers)),
            )


def _reasons(words: Explanation) -> Iterable[str]:
    """The explanation of one verdict, indented."""
    yield f"  why       {printable(words.reason)}"
    if words.error_text:
        yield f"  error     {printable(words.error_text)}"
    if words.fix:
        yield f"  fix       {printable(words.fix)}"
    yield f"  evidence  {words.evidence}"
    for label, sources in (("source", words.sources), ("contrary", words.contrary)):
        for each in sources:
            yield f"  {label:9} {_cite(each)}"


def _cite(source: Source) -> str:
    return f"{source.title} ({source.evidence}): {source.says} {source.url}"


def _columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Rows under a header, each column as wide as it has to be."""
    table = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(header))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def printable(text: str) -> str:
    """``text``, from a stranger's file, with an escape for all that could steer a terminal."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
