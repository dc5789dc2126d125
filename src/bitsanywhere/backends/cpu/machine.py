"""What processor this is: the feature level that the kernels are built for.

| level | lookup in 16 entries | small-batch dot products | needs |
|---|---|---|---|
| `avx512_bf16` | vpermps, vpermw | vdpbf16ps for bfloat16, else float32 | and AVX-512 BF16 |
| `avx512` | vpermps, vpermw | float32 | AVX-512 F BW VL DQ |
| `avx2` | vpermps, vpshufb | float32 | AVX2, FMA, F16C |
| `neon` | tbl | float32 | AArch64 |
| `generic` | loads from memory | float32 | nothing |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_LEVELS = {
    "avx512_bf16": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512bf16"),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx2": ("avx2", "fma", "f16c"),
}
_AVX512 = "avx512f avx512bw avx512vl avx512dq avx512bf16 avx512fp16"
_DENIED = {
    "avx512_bf16": "",
    "avx512": "avx512bf16",
    "avx2": _AVX512,
    "generic": f"{_AVX512} avx2 avx fma f16c",
}


@dataclass(frozen=True)
class Machine:
    """A compilation target.

    Attributes:
        level: a row of the table above.
        triple: LLVM's name of architecture and system.
        cpu: LLVM's name of the processor.
        features: LLVM's feature string, such as "+avx2,-sse4a".
        half: whether float16 converts in hardware; a kernel must not need a library for it.
    """

    level: str
    triple: str
    cpu: str
    features: str
    half: bool

    @classmethod
    def of(cls, level: str | None = None) -> Machine:
        """This machine, or this machine without what `level` does not have.

        Raises:
            ValueError: if it lacks a feature that `level` needs.
        """
        import llvmlite.binding as llvm

        triple = llvm.get_process_triple()
        names = dict(llvm.get_host_cpu_features())
        best = _best(triple, names)
        chosen = level or best
        if chosen not in levels_of(best):
            raise ValueError(f"level {chosen!r}: this processor has {', '.join(levels_of(best))}")
        if chosen != best:
            names.update(dict.fromkeys(_DENIED[chosen].split(), False))
        flags = ",".join(f"{'+' if on else '-'}{name}" for name, on in sorted(names.items()))
        half = names.get("f16c", False) or triple.startswith(("aarch64", "arm64"))
        return cls(chosen, triple, llvm.get_host_cpu_name(), flags, half)


def levels_of(best: str) -> tuple[str, ...]:
    """The levels that a processor whose best one is `best` can also run."""
    if best in ("neon", "generic"):
        return (best, "generic")[: 1 + (best == "neon")]
    order = (*_LEVELS, "generic")
    return order[order.index(best) :]


def _best(triple: str, features: dict[str, bool]) -> str:
    if triple.startswith(("aarch64", "arm64")):
        return "neon"
    for level, needed in _LEVELS.items():
        if all(features.get(name) for name in needed):
            return level
    return "generic"


@lru_cache(maxsize=1)
def host() -> Machine:
    """The machine of this process."""
    return Machine.of()
