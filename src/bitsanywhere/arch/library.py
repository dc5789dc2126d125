"""Turns one file into a `Library`: scans it, then sorts what was found by section."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from typing import BinaryIO

from bitsanywhere.arch.dispatch import stated_cuda
from bitsanywhere.arch.fatbin import Found, scan
from bitsanywhere.arch.model import EMBEDDED, REGIONS, Code, Container, Library
from bitsanywhere.arch.objectfile import ObjectFile, Section, is_object, read_object
from bitsanywhere.arch.tape import Tape
from bitsanywhere.errors import AuditError

NEEDED_SECTIONS = {".dynstr", ".rdata", ".idata"}


def read_library(path: str, open_stream: Callable[[], BinaryIO], size: int) -> Library:
    """Read the GPU code of one shared library, object file, cubin or fat binary.

    Args:
        path: the name to report; a CUDA version in it (``_cuda126.so``) is taken over.
        open_stream: opens the file at its start; called again only if its tables are scattered.
        size: its size in bytes.

    Raises:
        AuditError: if the file is truncated or contradicts itself.
    """
    tape = Tape(open_stream, size)
    try:
        scanned = scan(tape.pieces())
        described = read_object(tape) if is_object(tape.head) else ObjectFile("", "")
        containers = _containers(scanned.found, described.sections)
    except AuditError as error:
        raise AuditError(f"{path}: {error.what}", error.why, error.mend) from error
    return Library(
        path=path,
        system=described.system,
        machine=described.machine,
        containers=containers,
        cuda=stated_cuda(path),
        needs=_needs(scanned.needed, described.sections),
    )


def _containers(found: Iterable[Found], sections: tuple[Section, ...]) -> tuple[Container, ...]:
    """Distinct containers, each with its region.

    A container has to end in the section in which it starts: one that does not would hide
    what follows, so the file is refused rather than judged wrongly.
    """
    starts = [each.start for each in sections]
    counted: Counter[tuple[str, tuple[Code, ...]]] = Counter()
    for each in found:
        at = bisect_right(starts, each.start) - 1
        section = sections[at] if at >= 0 and each.start < sections[at].end else None
        region = section.region if section else EMBEDDED
        if section and each.end > section.end:
            raise AuditError(
                f"the fat binary at byte {each.start} runs past the end of section {section.name}",
                "A size in the file is a lie.",
            )
        if each.problem and (region != EMBEDDED or not sections):
            raise AuditError(
                f"the fat binary at byte {each.start} is malformed: {each.problem}",
                "The file is truncated or was damaged.",
            )
        if each.codes and not each.problem:
            counted[region, each.codes] += 1
    ordered = sorted(counted.items(), key=lambda item: REGIONS.index(item[0][0]))
    return tuple(Container(region, codes, count) for (region, codes), count in ordered)


def _needs(needed: Iterable[tuple[int, int]], sections: tuple[Section, ...]) -> tuple[int, ...]:
    """CUDA majors that the dynamic linker will ask for, ascending."""
    tables = [each for each in sections if each.name in NEEDED_SECTIONS]
    return tuple(
        sorted(
            {
                major
                for place, major in needed
                if any(table.start <= place < table.end for table in tables)
            }
        )
    )
