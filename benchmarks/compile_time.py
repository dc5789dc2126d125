"""How long NVRTC takes for a kernel: seconds of one core, no GPU needed.

    python -m benchmarks.compile_time [sm_87 ...]

Writes ``results/compile_time.json`` with a row for each architecture.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from tqdm import tqdm

from benchmarks.measure import environment, write
from bitsanywhere import targets
from bitsanywhere.backends.cuda import kernel_sources
from bitsanywhere.backends.cuda.jit import nvrtc
from bitsanywhere.backends.cuda.jit.compiler import compile_source


def measure(arch: str, compiler: nvrtc.Nvrtc) -> dict[str, Any]:
    """Every kernel that a device of an architecture may ask for.

    The shorter of two times, a pass apart, as a shared machine's speed comes and goes.
    """
    found = (source for target in targets.for_arch(arch) for source in kernel_sources(target))
    sources = list(dict.fromkeys(found))
    compile_source(sources[0], arch, nvrtc=compiler)
    passes: list[list[float]] = [[], []]
    for taken in passes:
        for source in tqdm(sources, arch):
            start = time.process_time()
            compile_source(source, arch, nvrtc=compiler)
            taken.append(time.process_time() - start)
    taken = list(map(min, *passes))
    seconds = {"median": statistics.median(taken)}
    seconds |= {"mean": statistics.mean(taken), "longest": max(taken)}
    return {"case": arch, "kernels": len(taken), **{f"seconds, {k}": v for k, v in seconds.items()}}


def main() -> None:
    """Measures the architectures one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", nargs="*", default=["sm_75", "sm_87", "sm_90", "sm_120"])
    compiler = nvrtc.search(nvrtc.MAJORS[0])
    facts = environment("cpu") | {"nvrtc": ".".join(map(str, compiler.version))}
    facts.pop("threads")
    rows = [measure(arch, compiler) for arch in parser.parse_args().arch]
    print(*rows, write("compile_time", {"environment": facts, "rows": rows}), sep="\n")


if __name__ == "__main__":
    main()
