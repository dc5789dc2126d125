"""Section tables of ELF and PE files: which part of a file holds which kind of GPU code."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from bitsanywhere.arch.fatbin import EM_CUDA
from bitsanywhere.arch.model import EMBEDDED, REGISTERED, RELOCATABLE
from bitsanywhere.arch.tape import Tape
from bitsanywhere.errors import AuditError

SECTION_REGIONS = {
    ".nv_fatbin": REGISTERED,
    ".nv_fatb": REGISTERED,
    "__nv_relfatbin": RELOCATABLE,
    "__nv_rel": RELOCATABLE,
}
ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 21: "ppc64", 243: "riscv"}
PE_MACHINES = {0x14C: "x86", 0x8664: "x86_64", 0xAA64: "aarch64"}

ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
ELF_SECTION = struct.Struct("<IIQQQQIIQQ")
PE_SECTION = struct.Struct("<8sIIIIIIHHI")
SHT_NULL, SHT_NOBITS = 0, 8
SHN_XINDEX = 0xFFFF
MAX_SECTIONS = 100_000
MAX_NAMES = 16 << 20


@dataclass(frozen=True)
class Section:
    """A named range of a file, in bytes."""

    name: str
    start: int
    end: int

    @property
    def region(self) -> str:
        """Which kind of GPU code it holds."""
        return SECTION_REGIONS.get(self.name, EMBEDDED)


@dataclass(frozen=True)
class ObjectFile:
    """System and processor that a file is for, and its sections in order of their start."""

    system: str
    machine: str
    sections: tuple[Section, ...] = ()


def is_object(head: bytes) -> bool:
    """Whether a file that begins with ``head`` claims to be ELF or PE."""
    return head[:4] == b"\x7fELF" or head[:2] == b"MZ"


def read_object(tape: Tape) -> ObjectFile:
    """Sections of the ELF or PE file on a tape that has been played once.

    Raises:
        AuditError: if the tables are truncated or contradict each other.
    """
    found = _read_elf(tape) if tape.head[:4] == b"\x7fELF" else _read_pe(tape)
    regions = [each for each in found.sections if each.region != EMBEDDED]
    for before, after in pairwise(regions):
        if after.start < before.end:
            raise AuditError(f"the sections {before.name} and {after.name} overlap")
    return found


def _read_elf(tape: Tape) -> ObjectFile:
    """Sections of an ELF file; none if it is 32-bit or big-endian, where CUDA does not exist."""
    head = tape.head
    if len(head) < ELF_HEADER.size:
        raise AuditError("the ELF header is truncated")
    if head[4] != 2 or head[5] != 1:
        return ObjectFile("linux", "")
    fields = ELF_HEADER.unpack_from(head)
    machine, table, width, count, names_at = (
        fields[2],
        fields[6],
        fields[11],
        fields[12],
        fields[13],
    )
    if machine == EM_CUDA:
        return ObjectFile("", "")
    name = ELF_MACHINES.get(machine, f"elf-{machine}")
    if table == 0:
        return ObjectFile("linux", name)
    if width != ELF_SECTION.size:
        raise AuditError(f"ELF section headers of {width} bytes, where the format has 64")
    first = ELF_SECTION.unpack(tape.read(table, width))
    count = count or first[5]
    names_at = first[6] if names_at == SHN_XINDEX else names_at
    if not names_at < count <= MAX_SECTIONS:
        raise AuditError(f"{count} ELF sections, the names in number {names_at}")
    rows = list(ELF_SECTION.iter_unpack(tape.read(table, count * width)))
    _, kind, _, _, start, size = rows[names_at][:6]
    if kind == SHT_NOBITS or size > MAX_NAMES:
        raise AuditError(f"{size} bytes of ELF section names")
    names = tape.read(start, size)
    sections: list[Section] = []
    for at, kind, _, _, start, size, *_ in rows:
        if kind in (SHT_NULL, SHT_NOBITS) or size == 0:
            continue
        _add(sections, names[at : at + 64].split(b"\0", 1)[0], start, size, tape)
    return ObjectFile("linux", name, _ordered(sections))


def _read_pe(tape: Tape) -> ObjectFile:
    """Sections of a PE file (a Windows DLL or Python extension)."""
    if tape.size < 0x40:
        raise AuditError("the DOS header is truncated")
    (at,) = struct.unpack("<I", tape.read(0x3C, 4))
    signature, machine, count, _, _, _, optional, _ = struct.unpack("<4sHHIIIHH", tape.read(at, 24))
    if signature != b"PE\0\0":
        raise AuditError("the file begins like a Windows program but has no PE header")
    table = tape.read(at + 24 + optional, count * PE_SECTION.size)
    sections: list[Section] = []
    for name, _, _, size, start, *_ in PE_SECTION.iter_unpack(table):
        if size:
            _add(sections, name.rstrip(b"\0"), start, size, tape)
    return ObjectFile("windows", PE_MACHINES.get(machine, f"pe-{machine:#x}"), _ordered(sections))


def _add(sections: list[Section], name: bytes, start: int, size: int, tape: Tape) -> None:
    """Append a section; one that lies outside the file is an error if it is for GPU code."""
    found = Section(name.decode("ascii", "replace"), start, start + size)
    if found.end <= tape.size:
        sections.append(found)
    elif found.region != EMBEDDED:
        raise AuditError(
            f"section {found.name} claims bytes {start} to {found.end} of a file of {tape.size}",
            "The file is truncated, or its size is a lie.",
        )


def _ordered(sections: list[Section]) -> tuple[Section, ...]:
    """Sections by their start."""
    return tuple(sorted(sections, key=lambda each: each.start))
