"""The audit: reads what it is given, judges it for each device, and returns plain data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from bitsanywhere.arch.devices import USUAL, Device, find_device
from bitsanywhere.arch.dispatch import select
from bitsanywhere.arch.model import EMBEDDED, Container, Library
from bitsanywhere.arch.places import Place, find, find_installed, read, read_once
from bitsanywhere.arch.verdict import Finding, Version, judge, worst
from bitsanywhere.errors import AuditError, InvalidArgumentError

MAX_LIBRARIES = 1000


@dataclass(frozen=True)
class DeviceReport:
    """One file and one device.

    Attributes:
        finding: what decides.
        libraries: the verdict on every library, also on those that are not loaded.
        loaded: paths of the libraries that are loaded under the CUDA in use.
    """

    finding: Finding
    libraries: tuple[Finding, ...]
    loaded: tuple[str, ...]


@dataclass(frozen=True)
class FileReport:
    """One wheel, package or folder.

    Attributes:
        path: as it was given.
        package, version: from the wheel's name or the package's metadata, "" if unknown.
        libraries: those that hold GPU code.
        without_gpu_code: how many others were read.
        devices: one report for each device, in the order asked for.
    """

    path: str
    package: str
    version: str
    libraries: tuple[Library, ...]
    without_gpu_code: int
    devices: tuple[DeviceReport, ...]

    @cached_property
    def by_path(self) -> dict[str, Library]:
        """The libraries by their paths."""
        return {each.path: each for each in self.libraries}


@dataclass(frozen=True)
class Report:
    """The whole audit. `cuda` is the version that was given, or None."""

    cuda: Version | None
    files: tuple[FileReport, ...]

    def covered(self, device: str) -> bool:
        """Whether a device of this name is served by what was audited.

        A file for another system is no objection if another file is for this one, as an
        installer picks the right one; every other file has to run on it.
        """
        verdicts = [
            each.finding
            for file in self.files
            for each in file.devices
            if each.finding.device.name == device
        ]
        fitting = [each for each in verdicts if each.verdict != "platform-tag"]
        return bool(fitting) and all(each.covered for each in fitting)


def audit(
    paths: Iterable[str],
    devices: Sequence[str | Device] = USUAL,
    cuda: str | Version | None = None,
) -> Report:
    """What the GPU code in ``paths`` can and cannot run on.

    Args:
        paths: wheels, shared libraries, folders, or names of installed packages.
        devices: names such as ``orin-nano`` or ``sm_87``, or devices.
        cuda: the CUDA version in use, such as "12.6". It decides which library of a package is
            loaded and what the driver understands; None judges every library and assumes a
            driver that is new enough.

    Raises:
        AuditError: for a path that cannot be read, or a damaged file.
        InvalidArgumentError: for an unknown device or a malformed CUDA version.
    """
    wanted = tuple(
        dict.fromkeys(each if isinstance(each, Device) else find_device(each) for each in devices)
    )
    version = parse_cuda(cuda) if isinstance(cuda, str) else cuda
    files = tuple(_audit(place, wanted, version) for path in paths for place in find(str(path)))
    return Report(version, files)


def audit_installed(package: str, device: Device, cuda: Version | None) -> FileReport | None:
    """What an installed package can do on one device; None if it is not installed.

    Reads only the libraries that would be loaded, and each once in a process as long as it does
    not change: quick enough for a check before the first use.

    Args:
        package: name of the distribution.
        device: the device in front of us.
        cuda: torch's CUDA version.

    Raises:
        AuditError: if a file of the package is damaged or cannot be read.
    """
    place = find_installed(package)
    return None if place is None else _audit(place, (device,), cuda, only_loaded=True)


def parse_cuda(text: str) -> Version:
    """``"12.6"`` as a pair.

    Raises:
        InvalidArgumentError: if it is no CUDA version.
    """
    match = re.fullmatch(r"(\d{1,2})\.(\d{1,2})(\.\d+)?", text.strip())
    if match is None or not 10 <= int(match[1]) < 100:
        raise InvalidArgumentError(
            f"{text!r} is no CUDA version", "It has to be two numbers.", "For example 12.6."
        )
    return int(match[1]), int(match[2])


def _audit(
    place: Place, devices: tuple[Device, ...], cuda: Version | None, only_loaded: bool = False
) -> FileReport:
    """Read one place and judge it for every device."""
    with place.open() as members:
        paths = [member.path for member in members]
        loaded, missing = select(paths, cuda, place.package, place.version)
        wanted = set(loaded if only_loaded else paths)
        reader = read_once if only_loaded else read
        read_all = [reader(member) for member in members if member.path in wanted]
    if place.single and not read_all[0].containers and not read_all[0].system:
        raise AuditError(
            f"{place.path!r} is no ELF or PE file, no wheel and no CUDA fat binary",
            mend="Give a wheel, a shared library, a cubin, a folder or an installed package.",
        )
    libraries = tuple(_merged(each for each in read_all if each.containers))
    if len(libraries) > MAX_LIBRARIES:
        raise AuditError(
            f"{place.path!r} has {len(libraries)} libraries with GPU code",
            f"No real package has more than {MAX_LIBRARIES}.",
        )
    loaded = [each.path for each in libraries if each.path in loaded or not each.system]
    return FileReport(
        path=place.path,
        package=place.package,
        version=place.version,
        libraries=libraries,
        without_gpu_code=sum(not each.containers for each in read_all),
        devices=tuple(_judge(libraries, loaded, missing, device, cuda) for device in devices),
    )


def _merged(libraries: Iterable[Library]) -> Iterator[Library]:
    """The libraries, with bare cubins of one folder as one: the package picks among them."""
    bare: dict[str, list[Library]] = {}
    for each in libraries:
        if each.system:
            yield each
        else:
            bare.setdefault(each.path.rpartition("/")[0], []).append(each)
    for folder, files in bare.items():
        if len(files) == 1:
            yield files[0]
            continue
        counted = Counter(found.codes for each in files for found in each.containers)
        containers = tuple(Container(EMBEDDED, codes, n) for codes, n in counted.items())
        yield Library(f"{folder}/*" if folder else "*", "", "", containers)


def _judge(
    libraries: tuple[Library, ...],
    loaded: list[str],
    missing: list[str],
    device: Device,
    cuda: Version | None,
) -> DeviceReport:
    """The verdict for one device; ``missing`` are libraries with no variant for this CUDA."""
    findings = {each.path: judge(each, device, cuda) for each in libraries}
    deciding = [findings[path] for path in loaded]
    deciding += [Finding(device, name, "cuda-major", error="loader") for name in missing]
    if not deciding:
        deciding = [Finding(device, "", "no-gpu-code")]
    return DeviceReport(worst(deciding), tuple(findings.values()), tuple(loaded))
