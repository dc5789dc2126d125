"""Decides what runs where: pure functions from what a library holds to a verdict.

No words are made here; `explain` finds them in the rule table.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitsanywhere.arch.devices import TEGRA_ARCHES, Device, canonical
from bitsanywhere.arch.model import EMBEDDED, REGISTERED, RELOCATABLE, Code, Container, Library
from bitsanywhere.arch.rules import FAMILIES, RULES, SEVERITY, ZSTD_CUDA, newest_isa, oldest_cuda

Version = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """The verdict on one library, or a whole file, for one device.

    Attributes:
        device: the device.
        library: path of the library that decides, or "" if none is there to decide.
        verdict: key of `rules.RULES`.
        via: the code through which it runs, or the nearest that does not; "" if none.
        error: key of `rules.ERRORS`, or "".
        judged: how many containers were judged.
        gaps: how many of them hold nothing that runs.
        optional: containers left out, since they hold code for one chip or family only.
        driver: the oldest CUDA that the driver must support, if it is not known to.
    """

    device: Device
    library: str
    verdict: str
    via: str = ""
    error: str = ""
    judged: int = 0
    gaps: int = 0
    optional: int = 0
    driver: Version | None = None

    @property
    def covered(self) -> bool:
        """Whether the device is expected to run it."""
        return RULES[self.verdict].covered


def worst(findings: list[Finding]) -> Finding:
    """The finding that decides: a chain is as strong as its weakest link."""
    return max(findings, key=lambda each: SEVERITY[each.verdict])


def judge(library: Library, device: Device, cuda: Version | None = None) -> Finding:
    """The verdict on one library.

    Args:
        library: what it holds.
        device: what it has to run on.
        cuda: the CUDA version in use, of both runtime and driver; None leaves out every rule
            that depends on it.
    """
    host = f"{library.system} {library.machine}"
    if device.hosts and library.system and host not in device.hosts:
        return Finding(device, library.path, "platform-tag", host, "pip")
    if cuda is not None:
        if library.needs and cuda[0] not in library.needs:
            via = f"CUDA {library.needs[-1]}"
            return Finding(device, library.path, "cuda-major", via, "loader")
        if library.cuda and library.cuda[0] > cuda[0]:
            via = f"CUDA {library.cuda[0]}.{library.cuda[1]}"
            return Finding(device, library.path, "cuda-major", via, "driver")
    return _judge_code(library, device, cuda)


def _judge_code(library: Library, device: Device, cuda: Version | None) -> Finding:
    """The verdict on a library that can be loaded."""
    registered = library.region(REGISTERED) or library.region(RELOCATABLE)
    if not registered:
        registered = (_union(library.region(EMBEDDED)),)
    link = _link(library, device, cuda)
    results = [(each, _container(each, device, cuda)) for each in registered]
    required = [(each, found) for each, found in results if not _optional(each, found)]
    required = required or results
    verdicts = [_linked(each, found, link) for each, found in required]
    verdict, code = max(verdicts, key=lambda found: SEVERITY[found[0]])
    if verdict == "no-image" and library.relocatable:
        verdict = "no-symbol"
    error = RULES[verdict].error
    if verdict in ("tegra-undocumented", "unknown-arch"):
        error = "no-symbol" if library.relocatable else "no-image"
    return Finding(
        device=device,
        library=library.path,
        verdict=verdict,
        via=code.name if code else "",
        error=error,
        judged=sum(each.count for each, _ in required),
        gaps=sum(
            each.count
            for (each, _), found in zip(required, verdicts, strict=True)
            if not RULES[found[0]].covered
        ),
        optional=sum(each.count for each, _ in results) - sum(each.count for each, _ in required),
        driver=_driver(code, cuda),
    )


Judged = tuple[str, "Code | None"]


def _linked(container: Container, found: Judged, link: Judged | None) -> Judged:
    """A container's verdict, with the driver's linking of relocatable objects as a last resort.

    Linked code comes without PTX; a container that has its own was never part of a device link.
    """
    plain = any(code.kind == "ptx" for code in container.codes)
    if RULES[found[0]].covered or link is None or plain:
        return found
    return min(found, link, key=lambda each: SEVERITY[each[0]])


def _link(library: Library, device: Device, cuda: Version | None) -> Judged | None:
    """What becomes of linking the relocatable objects on the device; None if there are none."""
    results = [_container(each, device, cuda) for each in library.region(RELOCATABLE)]
    if not results:
        return None
    verdict, code = max(results, key=lambda found: SEVERITY[found[0]])
    return ("rdc-jit-link" if RULES[verdict].covered else verdict), code


def _container(container: Container, device: Device, cuda: Version | None) -> Judged:
    """The best that one container has to offer."""
    results = [(_code(code, device, cuda), code) for code in container.codes]
    possible: list[Judged] = [(verdict, code) for verdict, code in results if verdict]
    return min(possible, key=lambda found: SEVERITY[found[0]], default=("no-image", None))


def _code(code: Code, device: Device, cuda: Version | None) -> str:
    """The verdict that one entry leads to, "" if it has no bearing on the device."""
    if code.kind == "sass":
        verdict = _sass(code, device)
    elif code.kind == "ptx":
        verdict = _ptx(code, device, cuda)
    else:
        return ""
    unreadable = code.compression == "zstd" and cuda is not None and cuda < ZSTD_CUDA
    return "compression-driver" if unreadable and verdict and RULES[verdict].covered else verdict


def _sass(code: Code, device: Device) -> str:
    """Machine code: exact, family, lower minor of the same major, or nothing."""
    arch = canonical(code.arch)
    if arch == device.arch:
        return "sass-exact"
    if code.suffix:
        member = code.suffix == "f" and device.arch in FAMILIES.get(arch, ())
        return "family" if member else ""
    if arch // 10 != device.arch // 10 or arch > device.arch:
        return ""
    if device.tegra or arch in TEGRA_ARCHES:
        return "tegra-undocumented"
    return "sass-minor" if device.known else "unknown-arch"


def _ptx(code: Code, device: Device, cuda: Version | None) -> str:
    """PTX: for this capability or a lower one, and of a version that the driver knows."""
    arch = canonical(code.arch)
    fits = {
        "": arch <= device.arch,
        "a": arch == device.arch,
        "f": device.arch in FAMILIES.get(arch, ()),
    }[code.suffix]
    if not fits:
        return ""
    if cuda is not None and code.isa is not None and code.isa > newest_isa(cuda):
        return "ptx-too-new"
    return "ptx-jit"


def _optional(container: Container, found: Judged) -> bool:
    """Whether a container that does not run here was never meant to.

    Code with a suffix uses instructions of one chip or family; libraries choose at run time
    whether to call it, so its absence elsewhere is no gap.
    """
    return not RULES[found[0]].covered and all(code.suffix for code in container.codes)


def _union(containers: tuple[Container, ...]) -> Container:
    """Embedded code as one container: the library picks among it by its own logic."""
    codes = dict.fromkeys(code for each in containers for code in each.codes)
    return Container(EMBEDDED, tuple(codes))


def _driver(code: Code | None, cuda: Version | None) -> Version | None:
    """The CUDA that the driver has to support for ``code``, if it is not known to do so."""
    if code is None:
        return None
    needed = [oldest_cuda(code.isa)] if code.isa else []
    if code.compression == "zstd":
        needed.append(ZSTD_CUDA)
    oldest = max(needed, default=None)
    return oldest if oldest and (cuda is None or oldest > cuda) else None
