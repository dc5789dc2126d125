"""Finds CUDA fat binaries and cubins in a stream of bytes, in one pass, without unpacking them.

Layout of a container, little-endian: 16 bytes (u32 magic 0xBA55ED50, u16 version 1, u16 header
size 16, u64 size of the rest), then entries. An entry has a header of at least 64 bytes (kind,
header size, payload size, compressed size, PTX ISA, architecture, flags) and its payload. Only
headers are looked at: what is compressed stays compressed.

The format is not documented by its maker. It was checked on the 2,931 entries of 29 published
wheels, and the tests compare with fat binaries that the CUDA compiler made.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from bitsanywhere.arch.model import Code
from bitsanywhere.errors import AuditError

MAGIC = b"\x50\xed\x55\xba"
CONTAINER = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
# Containers, entries, cubins and lookalikes that one file may show.
MAX_STRUCTURES = 100_000

KINDS = {1: "ptx", 2: "sass", 8: "lto"}
FLAG_LZ4, FLAG_ZSTD, FLAG_A, FLAG_F = 0x2000, 0x8000, 0x100000, 0x200000
FLAGS = FLAG_LZ4 | FLAG_ZSTD | FLAG_A | FLAG_F

CUBIN = b"\x7fELF\x02\x01\x01"
CUBIN_HEADER = 52
EM_CUDA = 190
# OSABI and ABI version of a cubin, and by how many bits e_flags is shifted to get at the SM.
CUBIN_ABIS = {(0x33, 7): 0, (0x41, 8): 8}

NEEDED = re.compile(
    rb"(?:libcudart|libcublas(?:Lt)?|libcusparse)\.so\.(\d{1,3})\x00"
    rb"|(?i:cudart|cublas|cublasLt|cusparse)64_(\d{1,3})\.dll\x00"
)
NEEDED_HINTS = (b"libcudart.so.", b"libcublas", b"cudart64_", b"cublas", b"cusparse")

# Headers that straddle two chunks are looked for again in the next one.
OVERLAP = 128


@dataclass(frozen=True)
class Found:
    """GPU code at a place in a file.

    Attributes:
        start, end: first byte, and the byte after the last one that was claimed.
        codes: its entries, each once.
        problem: what is wrong with it, or "".
    """

    start: int
    end: int
    codes: tuple[Code, ...]
    problem: str = ""


@dataclass
class Scanner:
    """Takes a file piece by piece and collects fat binaries, bare cubins and CUDA dependencies.

    Feed the pieces in order; then call `finish` and read `found` and `needed`.
    """

    found: list[Found] = field(default_factory=list)
    needed: list[tuple[int, int]] = field(default_factory=list)
    _tail: bytes = b""
    _base: int = 0
    _resume: int = 0
    _structures: int = 0
    _walk: _Walk | None = None

    def feed(self, piece: bytes) -> None:
        """Scan the next ``piece``.

        Raises:
            AuditError: if the file shows more structures than any real library has.
        """
        data = self._tail + piece
        while self._step(data):
            pass
        keep = min(OVERLAP, len(data))
        self._tail = data[len(data) - keep :]
        self._base += len(data) - keep

    def finish(self) -> None:
        """Close a container that the end of the file cuts off."""
        if self._walk is not None:
            self._close("it runs past the end of the file")

    def _step(self, data: bytes) -> bool:
        """Advance by one header; False once ``data`` has no more whole header to offer."""
        if self._walk is not None:
            return self._entry(data, self._walk)
        begin = max(0, self._resume - self._base)
        if begin >= len(data):
            return False
        hit = data.find(MAGIC, begin)
        stop = hit if hit >= 0 else len(data)
        self._look_between(data, begin, stop)
        if hit < 0:
            self._resume = self._base + max(begin, len(data) - CUBIN_HEADER + 1)
            return False
        if hit + CONTAINER.size > len(data):
            self._resume = self._base + hit
            return False
        self._count()
        _, version, header, size = CONTAINER.unpack_from(data, hit)
        self._resume = self._base + hit + len(MAGIC)
        if version == 1 and header == CONTAINER.size:
            start = self._base + hit
            first = start + CONTAINER.size
            self._walk = _Walk(start=start, next=first, end=first + size)
        return True

    def _entry(self, data: bytes, walk: _Walk) -> bool:
        """Read the entry header at ``walk.next``."""
        if walk.next == walk.end:
            self._close("")
            return True
        if walk.next + ENTRY.size > walk.end:
            self._close("its last entry is cut off by its own size")
            return True
        at = walk.next - self._base
        if at + ENTRY.size > len(data):
            return False
        kind, _, header, payload, packed, _, minor, major, arch, _, _, flags, _, _ = (
            ENTRY.unpack_from(data, at)
        )
        after = walk.next + header + payload
        if header < ENTRY.size or header % 8 or after > walk.end or packed > payload:
            self._close("an entry's sizes contradict its container's")
            return True
        known = kind in KINDS
        if known and (not 10 <= arch < 1000 or major > 99 or minor > 99):
            self._close(f"an entry is for architecture {arch}, version {major}.{minor}")
            return True
        self._count()
        number = arch if known else 0
        walk.codes.append(_code(kind, number, (major, minor), flags & FLAGS, packed > 0))
        walk.next = after
        return True

    def _close(self, problem: str) -> None:
        """Record the container that was being read and go on after it."""
        walk = self._walk
        assert walk is not None
        end = walk.next if problem else walk.end
        self.found.append(Found(walk.start, end, tuple(dict.fromkeys(walk.codes)), problem))
        self._resume = max(end, walk.start + CONTAINER.size)
        self._walk = None

    def _look_between(self, data: bytes, begin: int, stop: int) -> None:
        """Look for bare cubins and library names in bytes that belong to no fat binary."""
        hit = data.find(CUBIN, begin, stop)
        while hit >= 0 and hit + CUBIN_HEADER <= len(data):
            self._count()
            code = cubin(data[hit : hit + CUBIN_HEADER])
            if code is not None:
                place = self._base + hit
                self.found.append(Found(place, place + CUBIN_HEADER, (code,)))
            hit = data.find(CUBIN, hit + len(CUBIN), stop)
        if any(data.find(hint, begin, stop) >= 0 for hint in NEEDED_HINTS):
            for match in NEEDED.finditer(data, begin, stop):
                self._count()
                major = _major(match.group(1) or match.group(2))
                self.needed.append((self._base + match.start(), major))

    def _count(self) -> None:
        """Refuse a file that is made to keep the reader busy."""
        self._structures += 1
        if self._structures > MAX_STRUCTURES:
            raise AuditError(
                f"the file shows more than {MAX_STRUCTURES} fat binary headers",
                "No real library comes near that number.",
            )


@dataclass
class _Walk:
    """A container whose entries are being read."""

    start: int
    next: int
    end: int
    codes: list[Code] = field(default_factory=list)


def cubin(header: bytes) -> Code | None:
    """The code that a cubin's first 52 bytes describe, or None if this is no cubin."""
    if len(header) < CUBIN_HEADER or not header.startswith(CUBIN):
        return None
    shift = CUBIN_ABIS.get((header[7], header[8]))
    (machine,) = struct.unpack_from("<H", header, 18)
    if shift is None or machine != EM_CUDA:
        return None
    (flags,) = struct.unpack_from("<I", header, 48)
    return Code(kind="sass", arch=flags >> shift & 0xFF)


def scan(pieces: Iterable[bytes]) -> Scanner:
    """Scan a whole file, given in pieces."""
    scanner = Scanner()
    for piece in pieces:
        scanner.feed(piece)
    scanner.finish()
    return scanner


@lru_cache(maxsize=4096)
def _code(kind: int, arch: int, isa: tuple[int, int], flags: int, packed: bool) -> Code:
    """The code of an entry; the same object for the same values, as files repeat themselves."""
    name = KINDS.get(kind, "other")
    compression = "none"
    if packed:
        compression = "zstd" if flags & FLAG_ZSTD else "lz4" if flags & FLAG_LZ4 else "unknown"
    return Code(
        kind=name,
        arch=arch,
        suffix="a" if flags & FLAG_A else "f" if flags & FLAG_F else "",
        isa=isa if name == "ptx" else None,
        compression=compression,
    )


def _major(digits: bytes) -> int:
    """CUDA major version in a library name: ``12`` is 12, and Windows writes 11 as ``110``."""
    value = int(digits)
    return value // 10 if value >= 100 else value
