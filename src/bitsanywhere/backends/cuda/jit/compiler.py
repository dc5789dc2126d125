"""Source to machine code (or PTX) for one architecture. Needs libnvrtc, and no GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitsanywhere.backends.cuda.jit import nvrtc as nvrtc_module
from bitsanywhere.backends.cuda.jit.nvrtc import CompilationError, Nvrtc
from bitsanywhere.backends.cuda.jit.signature import parameter_format
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.settings import ARCH


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        entry: name of the function in the image.
        arch: `sm_XX` for machine code, `compute_XX` for PTX.
        cubin: machine code; empty where `arch` is virtual.
        ptx: the PTX, for both kinds.
        parameters: the kernel's parameters as a `struct` format, see `signature`.
        log: what NVRTC and ptxas said.
        nvrtc: NVRTC's version, such as "12.6".
        registers, spill_bytes, stack_bytes, shared_bytes: per thread, per thread (loads and
            stores), per thread, static per block; None where no machine code was made.
    """

    entry: str
    arch: str
    cubin: bytes
    ptx: bytes
    parameters: str
    log: str
    nvrtc: str
    registers: int | None = None
    spill_bytes: int | None = None
    stack_bytes: int | None = None
    shared_bytes: int | None = None

    @property
    def image(self) -> bytes:
        """What the driver loads."""
        return self.cubin or self.ptx


def compile_source(
    src: KernelSource, arch: str, *, nvrtc: Nvrtc | None = None, ptx: bool = False
) -> Compiled:
    """Compiles a kernel.

    Args:
        arch: `sm_XX`, or `compute_XX` for PTX.
        nvrtc: the compiler; None for the newest installed.
        ptx: PTX only, also where `arch` is `sm_XX`.

    Raises:
        BackendUnavailable: there is no NVRTC.
        CompilationError: NVRTC refuses the source or does not know the architecture.
        InvalidArgumentError: `arch` is malformed, or PTX is asked of a chip-specific source.
    """
    if not ARCH.fullmatch(arch):
        raise InvalidArgumentError(f"arch={arch!r}", "It must be sm_XX or compute_XX.")
    if ptx:
        arch = arch.replace("sm_", "compute_")
    if src.specific and arch[-1].isdigit():
        if arch.startswith("compute_"):
            raise InvalidArgumentError(
                f"{src.entry} of {src.file} uses instructions of one chip only.",
                "PTX for other chips cannot be made of it.",
            )
        arch += "a"
    compiler = nvrtc or nvrtc_module.find()
    texts = src.read()
    options = [f"--gpu-architecture={arch}", *src.options]
    if arch.startswith("sm_"):
        options.append("--ptxas-options=-v")
    output = compiler.compile(src.file, texts.pop(src.file), texts, options)
    text = output.ptx.decode(errors="replace")
    return Compiled(
        entry=src.entry,
        arch=arch,
        cubin=output.cubin,
        ptx=output.ptx,
        parameters=parameter_format(text, src.entry),
        log=output.log,
        nvrtc=".".join(map(str, compiler.version)),
        **_resources(output.log, src.entry) if output.cubin else {},
    )


def _resources(log: str, entry: str) -> dict[str, int]:
    """Resource usage of one entry point, from `ptxas -v`."""
    sections = re.split(r"Compiling entry function '(\w+)' for", log)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    if entry not in named:
        raise CompilationError(f"ptxas reports no resource usage for {entry}.", log)

    def number(pattern: str) -> int:
        found = re.search(pattern, named[entry])
        return int(found.group(1)) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "stack_bytes": number(r"(\d+) bytes stack frame"),
        "shared_bytes": number(r"(\d+) bytes smem"),
    }


__all__ = ["CompilationError", "Compiled", "compile_source"]
