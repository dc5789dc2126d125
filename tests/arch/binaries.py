"""Writes small ELF, PE, fat binary and zip files byte by byte, right or wrong as a test wants."""

from __future__ import annotations

import io
import struct
import zipfile

LZ4, ZSTD, SUFFIX_A, SUFFIX_F = 0x2000, 0x8000, 0x100000, 0x200000
PTX, ELF, LTO = 1, 2, 8


def entry(
    arch: int,
    kind: int = ELF,
    *,
    isa: tuple[int, int] = (8, 5),
    flags: int = 0x11,
    payload: bytes = b"\x5a" * 24,
    packed: int = 0,
    header: int = 64,
    stated: int | None = None,
) -> bytes:
    """One entry; ``stated`` is the payload size that it claims, by default the true one."""
    padded = payload + bytes(-len(payload) % 8)
    size = len(padded) if stated is None else stated
    head = struct.pack(
        "<HHIQIIHHIIIQQQ",
        kind,
        0x0101,
        header,
        size,
        packed,
        0,
        isa[1],
        isa[0],
        arch,
        0,
        0,
        flags,
        0,
        0,
    )
    return head + bytes(max(0, header - 64)) + padded


def container(
    *entries: bytes, size: int | None = None, version: int = 1, header: int = 16
) -> bytes:
    """A container of entries; ``size`` is what it claims, by default the true one."""
    body = b"".join(entries)
    stated = len(body) if size is None else size
    return struct.pack("<IHHQ", 0xBA55ED50, version, header, stated) + body


def elf(
    sections: dict[str, bytes],
    *,
    machine: int = 183,
    claims: dict[str, tuple[int, int]] | None = None,
    table_at: int | None = None,
) -> bytes:
    """A 64-bit ELF file; ``claims`` overrides the (offset, size) of a section."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body = bytearray(64)
    rows = [struct.pack("<IIQQQQIIQQ", *[0] * 10)]
    for name, data in {**sections, ".shstrtab": names}.items():
        body += bytes(-len(body) % 8)
        start, size = (claims or {}).get(name, (len(body), len(data)))
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", at, 1, 2, 0, start, size, 0, 0, 8, 0))
        body += data
    body += bytes(-len(body) % 8)
    table = len(body) if table_at is None else table_at
    body[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        3,
        machine,
        1,
        0,
        0,
        table,
        0,
        64,
        0,
        0,
        64,
        len(rows),
        len(rows) - 1,
    )
    return bytes(body + b"".join(rows))


def pe(sections: dict[str, bytes], *, machine: int = 0x8664) -> bytes:
    """A PE file with the given sections, laid out as a linker does."""
    optional = bytes(240)
    header = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80) + bytes(0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", machine, len(sections), 0, 0, 0, 240, 0x2022)
    at = len(header) + len(coff) + len(optional) + 40 * len(sections)
    rows, body = b"", b""
    for name, data in sections.items():
        start = -(-(at + len(body)) // 512) * 512
        body = body.ljust(start - at, b"\0") + data
        rows += struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(data), 0, len(data), start, 0, 0, 0, 0, 0
        )
    return header + coff + optional + rows + body


def cubin(arch: int, abi: int = 8) -> bytes:
    """The header of a cubin: ABI 7 and 8 keep the architecture in different bits."""
    osabi, flags = (0x33, arch) if abi == 7 else (0x41, arch << 8)
    return struct.pack(
        "<7sBB7xHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        osabi,
        abi,
        2,
        190,
        1,
        0,
        0,
        0,
        flags,
        64,
        0,
        0,
        64,
        0,
        0,
    )


def wheel(members: dict[str, bytes]) -> bytes:
    """A zip archive of ``members``, deflated."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return made.getvalue()
