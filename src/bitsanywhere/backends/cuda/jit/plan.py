"""Which ways there are to get a kernel onto a chip, best first: a pure function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

TEGRA = frozenset({53, 62, 72, 87, 101, 110})


class Way(NamedTuple):
    """One way: `source` is "nvrtc" or "pack", `arch` is sm_XX or compute_XX."""

    source: str
    arch: str

    def __str__(self) -> str:
        if self.source == "pack":
            return f"kernel pack for {self.arch}"
        finish = ", finished by the driver" if self.arch.startswith("compute_") else ""
        return f"NVRTC for {self.arch}{finish}"


def ways(
    chip: int,
    nvrtc_archs: Iterable[int] = (),
    pack_archs: Iterable[str] = (),
    forced: str | None = None,
) -> tuple[Way, ...]:
    """The ways to try, in order.

    Args:
        chip: compute capability, 10 * major + minor.
        nvrtc_archs: the architectures that the installed NVRTC knows; none if there is no NVRTC.
        pack_archs: the architectures (sm_XX) of the installed packs that hold this very source.
        forced: an architecture that everything is compiled for, whatever the chip.

    Where NVRTC knows the chip, it makes machine code; where it is older, PTX of the highest
    architecture up to the chip's, which any later chip's driver can finish. Machine code in packs
    runs on the same architecture, and on a later minor one of the same major among non-Tegra
    chips (CUDA Programming Guide, binary compatibility).
    """
    if forced is not None:
        return (Way("nvrtc", forced),)
    found = []
    known = [arch for arch in nvrtc_archs if arch <= chip]
    if chip in known:
        found.append(Way("nvrtc", f"sm_{chip}"))
    elif known:
        found.append(Way("nvrtc", f"compute_{max(known)}"))
    fitting = sorted((a for a in map(_number, pack_archs) if runs_on(a, chip)), reverse=True)
    return (*found, *(Way("pack", f"sm_{arch}") for arch in fitting))


def runs_on(arch: int, chip: int) -> bool:
    """Whether machine code of `sm_arch` runs on a chip, both as 10 * major + minor."""
    if arch == chip:
        return True
    tegra = arch in TEGRA or chip in TEGRA
    return not tegra and arch // 10 == chip // 10 and arch < chip


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))
