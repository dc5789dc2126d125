"""Devices by name: what capability a chip has, whether it is a Tegra, and which hosts it has.

Capabilities are those of NVIDIA's table at https://developer.nvidia.com/cuda-gpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitsanywhere.errors import InvalidArgumentError

LINUX_ARM = "linux aarch64"
LINUX_X86 = "linux x86_64"
WINDOWS_X86 = "windows x86_64"
DESKTOP = (LINUX_X86, WINDOWS_X86, LINUX_ARM)
SERVER = (LINUX_X86, LINUX_ARM)
ARM = (LINUX_ARM,)

# sm_101 became sm_110 with CUDA 13.0: the same chip, Thor.
RENAMED = {101: 110}
ARCH_NAME = re.compile(r"sm_?(\d{2,3})[af]?", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """A chip that code may have to run on.

    Attributes:
        name: what the user calls it: ``orin-nano``, or ``sm_87`` for a capability as such.
        title: its product name.
        arch: compute capability times ten.
        tegra: whether it is a Jetson or Drive system on a chip.
        hosts: "system processor" pairs that it is found in; empty means any.
        known: whether `arch` is in the table below.
    """

    name: str
    title: str
    arch: int
    tegra: bool = False
    hosts: tuple[str, ...] = ()
    known: bool = True

    @property
    def capability(self) -> str:
        """``8.7``."""
        return f"{self.arch // 10}.{self.arch % 10}"


def _tegra(name: str, title: str, arch: int) -> Device:
    return Device(name, title, arch, tegra=True, hosts=ARM)


DEVICES = (
    _tegra("jetson-nano", "Jetson Nano, TX1", 53),
    _tegra("jetson-tx2", "Jetson TX2", 62),
    _tegra("xavier-nx", "Jetson Xavier NX", 72),
    _tegra("agx-xavier", "Jetson AGX Xavier", 72),
    _tegra("orin-nano", "Jetson Orin Nano", 87),
    _tegra("orin-nx", "Jetson Orin NX", 87),
    _tegra("agx-orin", "Jetson AGX Orin", 87),
    _tegra("thor", "Jetson AGX Thor", 110),
    Device("gb10", "GB10 (DGX Spark)", 121, hosts=ARM),
    Device("gh200", "GH200 Grace Hopper", 90, hosts=ARM),
    Device("gb200", "GB200 Grace Blackwell", 100, hosts=ARM),
    Device("gb300", "GB300 Grace Blackwell Ultra", 103, hosts=ARM),
    Device("p100", "Tesla P100", 60, hosts=SERVER),
    Device("gtx1080", "GeForce GTX 1080", 61, hosts=DESKTOP),
    Device("v100", "Tesla V100", 70, hosts=SERVER),
    Device("t4", "Tesla T4", 75, hosts=SERVER),
    Device("rtx2080", "GeForce RTX 2080", 75, hosts=DESKTOP),
    Device("a100", "A100", 80, hosts=SERVER),
    Device("a30", "A30", 80, hosts=SERVER),
    Device("a10", "A10", 86, hosts=SERVER),
    Device("a40", "A40", 86, hosts=SERVER),
    Device("rtx3060", "GeForce RTX 3060", 86, hosts=DESKTOP),
    Device("rtx3070", "GeForce RTX 3070", 86, hosts=DESKTOP),
    Device("rtx3080", "GeForce RTX 3080", 86, hosts=DESKTOP),
    Device("rtx3090", "GeForce RTX 3090", 86, hosts=DESKTOP),
    Device("a6000", "RTX A6000", 86, hosts=DESKTOP),
    Device("l4", "L4", 89, hosts=SERVER),
    Device("l40", "L40", 89, hosts=SERVER),
    Device("l40s", "L40S", 89, hosts=SERVER),
    Device("rtx4060", "GeForce RTX 4060", 89, hosts=DESKTOP),
    Device("rtx4070", "GeForce RTX 4070", 89, hosts=DESKTOP),
    Device("rtx4080", "GeForce RTX 4080", 89, hosts=DESKTOP),
    Device("rtx4090", "GeForce RTX 4090", 89, hosts=DESKTOP),
    Device("rtx6000-ada", "RTX 6000 Ada", 89, hosts=DESKTOP),
    Device("h100", "H100", 90, hosts=SERVER),
    Device("h200", "H200", 90, hosts=SERVER),
    Device("b200", "B200", 100, hosts=SERVER),
    Device("b300", "B300", 103, hosts=SERVER),
    Device("rtx5060", "GeForce RTX 5060", 120, hosts=DESKTOP),
    Device("rtx5070", "GeForce RTX 5070", 120, hosts=DESKTOP),
    Device("rtx5080", "GeForce RTX 5080", 120, hosts=DESKTOP),
    Device("rtx5090", "GeForce RTX 5090", 120, hosts=DESKTOP),
    Device("rtx-pro-6000", "RTX PRO 6000 Blackwell", 120, hosts=DESKTOP),
)
ALIASES = {
    "jetson-tx1": "jetson-nano",
    "dgx-spark": "gb10",
    "spark": "gb10",
    "jetson-orin-nano": "orin-nano",
    "jetson-orin-nx": "orin-nx",
    "jetson-agx-orin": "agx-orin",
    "jetson-thor": "thor",
    "agx-thor": "thor",
}
# Shown when no device is asked for: one for every capability that is in wide use.
USUAL = (
    "orin-nano",
    "thor",
    "gb10",
    "t4",
    "a100",
    "rtx3090",
    "rtx4090",
    "h100",
    "b200",
    "b300",
    "rtx5090",
)
# Capabilities that CUDA compilers know and no device above has.
OTHER_ARCHES = frozenset({50, 52, 88, 107})
TEGRA_ARCHES = frozenset(each.arch for each in DEVICES if each.tegra)
KNOWN_ARCHES = OTHER_ARCHES | {each.arch for each in DEVICES}

_BY_NAME = {each.name: each for each in DEVICES}


def canonical(arch: int) -> int:
    """The number that an architecture goes by today: 101 is 110."""
    return RENAMED.get(arch, arch)


def find_device(name: str) -> Device:
    """The device called ``name``: a product such as ``orin-nano`` or a capability, ``sm_87``.

    Raises:
        InvalidArgumentError: if there is none of that name.
    """
    wanted = name.strip().lower()
    known = _BY_NAME.get(ALIASES.get(wanted, wanted))
    if known is not None:
        return known
    match = ARCH_NAME.fullmatch(wanted)
    if match is None:
        raise InvalidArgumentError(
            f"no device is called {name!r}",
            f"Known are {', '.join(_BY_NAME)}.",
            "For any other chip give its compute capability, such as sm_87.",
        )
    return of_arch(int(match[1]))


def of_arch(arch: int) -> Device:
    """A compute capability as such, whatever product has it."""
    today = canonical(arch)
    return Device(
        name=f"sm_{today}",
        title=f"compute capability {today // 10}.{today % 10}",
        arch=today,
        tegra=today in TEGRA_ARCHES,
        known=today in KNOWN_ARCHES,
    )
