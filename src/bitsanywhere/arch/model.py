"""What a file holds for GPUs: plain data, produced by the readers and consumed by the judge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

REGISTERED = "registered"
RELOCATABLE = "relocatable"
EMBEDDED = "embedded"
REGIONS = (REGISTERED, RELOCATABLE, EMBEDDED)


@dataclass(frozen=True)
class Code:
    """One entry of a fat binary.

    Attributes:
        kind: "sass" (machine code), "ptx" (virtual machine text), "lto" (LTO-IR) or "other".
        arch: compute capability times ten, such as 87.
        suffix: "" or "a" (that capability only) or "f" (that family only).
        isa: PTX ISA version of a PTX entry, otherwise None.
        compression: "none", "lz4", "zstd" or "unknown".
    """

    kind: str
    arch: int
    suffix: str = ""
    isa: tuple[int, int] | None = None
    compression: str = "none"

    @property
    def name(self) -> str:
        """``sm_90a`` for machine code, ``compute_90@8.5`` for PTX, ``lto_90`` for LTO-IR."""
        if self.kind == "ptx":
            version = f"@{self.isa[0]}.{self.isa[1]}" if self.isa else ""
            return f"compute_{self.arch}{self.suffix}{version}"
        prefix = {"sass": "sm", "lto": "lto"}.get(self.kind, "other")
        return f"{prefix}_{self.arch}{self.suffix}"


@dataclass(frozen=True)
class Container:
    """The entries that the CUDA runtime is handed together: it picks one of them.

    Attributes:
        region: "registered", "relocatable" or "embedded".
        codes: the entries, each once.
        count: how many containers of the library hold exactly these entries.
    """

    region: str
    codes: tuple[Code, ...]
    count: int = 1


@dataclass(frozen=True)
class Library:
    """One shared library, cubin or fat binary, and the GPU code in it.

    Attributes:
        path: where it lies in its wheel, folder or package.
        system: "linux", "windows" or "" for files that are GPU code only.
        machine: host processor, "x86_64", "aarch64", another name, or "".
        containers: distinct containers, in order of first appearance.
        cuda: CUDA version that the file's name gives, as in ``..._cuda126.so``.
        needs: major versions of the CUDA libraries that it is linked against.
    """

    path: str
    system: str
    machine: str
    containers: tuple[Container, ...]
    cuda: tuple[int, int] | None = None
    needs: tuple[int, ...] = ()

    def region(self, name: str) -> tuple[Container, ...]:
        """Containers of one region."""
        return tuple(found for found in self.containers if found.region == name)

    @cached_property
    def sass(self) -> tuple[str, ...]:
        """Names of all machine code in it."""
        return names(self.containers, "sass")

    @cached_property
    def ptx(self) -> tuple[str, ...]:
        """Names of all PTX in it."""
        return names(self.containers, "ptx")

    @cached_property
    def relocatable(self) -> bool:
        """Whether it was built as relocatable device code (``nvcc -rdc=true``)."""
        return any(found.region == RELOCATABLE for found in self.containers)


def names(containers: Iterable[Container], kind: str) -> tuple[str, ...]:
    """Sorted names of every code of ``kind`` in ``containers``, each once."""
    found = {code for each in containers for code in each.codes if code.kind == kind}
    unique = {code.name: (code.arch, code.suffix, code.isa or (0, 0)) for code in found}
    return tuple(sorted(unique, key=lambda name: unique[name]))


def compressions(containers: Iterable[Container]) -> tuple[str, ...]:
    """Sorted names of the compressions used in ``containers``."""
    return tuple(sorted({code.compression for each in containers for code in each.codes}))
