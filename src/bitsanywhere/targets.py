"""Targets: what configuration choices need to know of a chip, real or only known by name."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from bitsanywhere.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch

_KIB, _MIB = 1024, 1024 * 1024

# Shared memory a block may opt in to, by compute capability (CUDA C++ Programming Guide, table of
# technical specifications; 8.8 and 10.7 by their nearest relative).
_SHARED_MEMORY = {
    **dict.fromkeys(("sm_86", "sm_88", "sm_89", "sm_120", "sm_121"), 99 * _KIB),
    **dict.fromkeys(("sm_80", "sm_87"), 163 * _KIB),
    **dict.fromkeys(("sm_90", "sm_100", "sm_101", "sm_103", "sm_107", "sm_110"), 227 * _KIB),
    "sm_75": 64 * _KIB,
}
_LEAST_SHARED_MEMORY = 48 * _KIB


class Target(NamedTuple):
    """A chip, as far as choosing a configuration goes.

    Attributes:
        arch: such as "sm_87".
        major, minor: compute capability.
        sm_count: streaming multiprocessors.
        shared_memory: bytes that one block may opt in to.
        l2_bytes: size of the L2 cache.
        name: for people.
    """

    arch: str
    major: int
    minor: int
    sm_count: int
    shared_memory: int
    l2_bytes: int
    name: str

    @staticmethod
    def of(device: torch.device) -> Target:
        """The chip of a CUDA device, or the one that `BITSANYWHERE_TARGET` names.

        The variable makes every configuration be chosen as for that known target; it is for
        testing another chip's code path.

        Raises:
            InvalidArgumentError: no CUDA device, or the variable names no known target.
        """
        index = device.index
        if device.type != "cuda":
            raise InvalidArgumentError(f"device={device}", "Only CUDA devices have a target.")
        if index is None:
            import torch

            index = torch.cuda.current_device()
        return _of_index(index)


@cache
def _of_index(index: int) -> Target:
    named = os.environ.get("BITSANYWHERE_TARGET")
    if named:
        try:
            return known(named)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"BITSANYWHERE_TARGET={named!r}", error.why, "Unset it for the chip itself."
            ) from None
    import torch

    properties = torch.cuda.get_device_properties(index)
    arch = f"sm_{properties.major}{properties.minor}"
    # The attribute is missing from older torch.
    shared = getattr(properties, "shared_memory_per_block_optin", 0)
    return Target(
        arch=arch,
        major=properties.major,
        minor=properties.minor,
        sm_count=properties.multi_processor_count,
        shared_memory=shared or _SHARED_MEMORY.get(arch, _LEAST_SHARED_MEMORY),
        l2_bytes=getattr(properties, "L2_cache_size", 0),
        name=properties.name,
    )


def _target(name: str, arch: str, sm_count: int, l2_mib: int) -> Target:
    number = int(arch.removeprefix("sm_"))
    return Target(
        arch=arch,
        major=number // 10,
        minor=number % 10,
        sm_count=sm_count,
        shared_memory=_SHARED_MEMORY[arch],
        l2_bytes=l2_mib * _MIB,
        name=name,
    )


# From NVIDIA's data sheets and architecture papers. One typical product an architecture, more
# where products differ by so much that configurations do.
_KNOWN = {
    target.name: target
    for target in (
        _target("t4", "sm_75", 40, 4),
        _target("a100", "sm_80", 108, 40),
        _target("rtx3090", "sm_86", 82, 6),
        _target("orin-nano", "sm_87", 8, 2),
        _target("agx-orin", "sm_87", 16, 4),
        _target("l4", "sm_89", 58, 48),
        _target("rtx4090", "sm_89", 128, 72),
        _target("h100", "sm_90", 132, 50),
        _target("b200", "sm_100", 148, 126),
        _target("b300", "sm_103", 148, 126),
        _target("thor", "sm_110", 20, 32),
        _target("rtx5090", "sm_120", 170, 96),
        _target("gb10", "sm_121", 48, 24),
    )
}


def known(name: str) -> Target:
    """A target by name, such as "orin-nano".

    Raises:
        InvalidArgumentError: the name is unknown.
    """
    if name not in _KNOWN:
        raise InvalidArgumentError(f"target={name!r}", f"Known targets: {', '.join(_KNOWN)}.")
    return _KNOWN[name]


def for_arch(arch: str) -> tuple[Target, ...]:
    """The known targets of an architecture, so that a kernel pack serves each of them.

    An architecture without a known product borrows from the nearest lower one that has some; one
    above all others from the highest.

    Args:
        arch: such as "sm_87".
    """
    exact = tuple(target for target in _KNOWN.values() if target.arch == arch)
    if exact:
        return exact
    number = int(arch.removeprefix("sm_"))
    lower = [t for t in _KNOWN.values() if 10 * t.major + t.minor < number]
    nearest = max(lower, key=lambda t: 10 * t.major + t.minor, default=_KNOWN["t4"])
    return (
        nearest._replace(
            arch=arch,
            major=number // 10,
            minor=number % 10,
            shared_memory=_SHARED_MEMORY.get(arch, _LEAST_SHARED_MEMORY),
            name=arch,
        ),
    )
