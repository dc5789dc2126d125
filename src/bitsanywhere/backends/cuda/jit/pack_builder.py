"""Building kernel packs: on any machine with NVRTC, no GPU needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitsanywhere import targets
from bitsanywhere.backends.cuda.jit.compiler import compile_source
from bitsanywhere.backends.cuda.jit.nvrtc import Nvrtc
from bitsanywhere.backends.cuda.jit.packs import MANIFEST, Manifest, PackedKernel
from bitsanywhere.backends.cuda.jit.source import KernelSource
from bitsanywhere.errors import PackError
from bitsanywhere.targets import Target

LOWEST_ARCH = 75


def build(
    archs: Sequence[str],
    out: Path,
    sources: Callable[[Target], Sequence[KernelSource]],
    nvrtc: Nvrtc,
    progress: bool = True,
) -> Manifest:
    """Compiles every kernel for every architecture into a new folder.

    Args:
        archs: such as ("sm_87",).
        out: must not exist, or be empty.
        sources: the kernels that a target needs; asked for every known target of an architecture.
        progress: show a bar.

    Raises:
        PackError: `out` has content, or NVRTC does not know an architecture.
        CompilationError: NVRTC refuses a kernel.
    """
    from tqdm.auto import tqdm

    unknown = [arch for arch in archs if arch not in supported(nvrtc)]
    if unknown:
        raise PackError(
            f"{nvrtc!r} does not compile for {', '.join(unknown)}.",
            f"It knows {', '.join(supported(nvrtc))}.",
            "Name another NVRTC with --nvrtc.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists already.", "", "Choose a new folder for --out.")
    jobs = [
        (src, arch)
        for arch in dict.fromkeys(archs)
        for src in dict.fromkeys(s for t in targets.for_arch(arch) for s in sources(t))
    ]
    for arch in dict.fromkeys(archs):
        (out / arch).mkdir(parents=True)

    def compile_one(job: tuple[KernelSource, str]) -> PackedKernel:
        src, arch = job
        compiled = compile_source(src, arch, nvrtc=nvrtc)
        digest = src.digest()
        kernel = PackedKernel(
            name=src.entry,
            digest=digest,
            arch=arch,
            file=f"{arch}/{src.entry}-{digest[:16]}.cubin",
            sha256=hashlib.sha256(compiled.cubin).hexdigest(),
            bytes=len(compiled.cubin),
            parameters=compiled.parameters,
        )
        (out / kernel.file).write_bytes(compiled.cubin)
        return kernel

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        done = tqdm(pool.map(compile_one, jobs), "Compiling", len(jobs), disable=not progress)
        kernels = tuple(done)
    manifest = Manifest.of(".".join(map(str, nvrtc.version)), kernels)
    (out / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def supported(nvrtc: Nvrtc) -> tuple[str, ...]:
    """The architectures, from sm_75 on, that an NVRTC compiles for."""
    return tuple(f"sm_{arch}" for arch in nvrtc.archs if arch >= LOWEST_ARCH)
