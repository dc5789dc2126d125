"""Collects what the doctor reports: each device is looked at in a process of its own."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from bitsanywhere.arch import audit_installed, explain, of_arch
from bitsanywhere.arch.report import parse_cuda
from bitsanywhere.errors import BitsAnywhereError
from bitsanywhere.version import __version__

PEER = "bitsandbytes"
PACKAGES = (
    "torch",
    "numba",
    "cuda-bindings",
    "cuda-core",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    PEER,
)
MACHINE_SECONDS = 60
DEVICE_SECONDS = 180
# Folders that are the same on everyone's machine and tell where a library came from.
COMMON = ("/usr", "/opt", "/lib", "/lib64", "/etc")
PATHS = re.compile(r"(?<![\w.~>/])(?:/[\w.+@~-]+){2,}|[A-Za-z]:\\[^\s'\"]+")


@dataclass(frozen=True)
class Outcome:
    """What a probe printed, and how it ended; `problem` is "" if it ended well."""

    lines: tuple[dict[str, Any], ...]
    problem: str


@dataclass(frozen=True)
class DeviceReport:
    """One device: what it is, what serves each op, and whether quantization really works.

    Attributes:
        facts: name, capability, memory.
        ops: which implementation each op takes, and why.
        roundtrip: errors and seconds, or None if it did not get that far.
        problem: how the probe died, or "".
        peer: what an installed bitsandbytes can do here by itself, or None if there is none.
    """

    facts: dict[str, Any]
    ops: tuple[dict[str, Any], ...]
    roundtrip: dict[str, Any] | None
    problem: str
    peer: dict[str, Any] | None

    @property
    def works(self) -> bool:
        """Whether quantization works on this device."""
        return not self.problem and bool(self.roundtrip and self.roundtrip["ok"])


@dataclass(frozen=True)
class Diagnosis:
    """The whole report.

    Attributes:
        software: versions of this library, of Python, of the system and of packages.
        machine: torch's and the driver's CUDA, NVRTC, cache and packs; {} if that probe died.
        problem: how that probe died, or "".
        devices: the CPU first, then every GPU that torch can use.
    """

    software: dict[str, str]
    machine: dict[str, Any]
    problem: str
    devices: tuple[DeviceReport, ...] = field(default_factory=tuple)

    @property
    def works(self) -> bool:
        """Whether quantization works on every device here."""
        return bool(self.devices) and all(each.works for each in self.devices)


def diagnose() -> Diagnosis:
    """Look at this machine. Takes seconds: kernels may be compiled for the first time."""
    outcome = probe("machine", MACHINE_SECONDS)
    machine = next((line for line in outcome.lines if line["kind"] == "machine"), {})
    devices = machine.get("devices", [{"device": "cpu", "name": "", "arch": None}])
    return Diagnosis(
        software=_software(),
        machine={key: value for key, value in machine.items() if key not in ("kind", "devices")},
        problem=outcome.problem,
        devices=tuple(_device(facts, machine.get("torch_cuda")) for facts in devices),
    )


def probe(what: str, seconds: float) -> Outcome:
    """Run a probe with a time limit; a crash or a hang is a finding."""
    command = [sys.executable, "-m", "bitsanywhere.cli.doctor.probe", what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return Outcome(_lines(text), f"no answer within {seconds:.0f} s")
    return Outcome(_lines(done.stdout), _ending(done.returncode, done.stderr))


def _ending(status: int, errors: str) -> str:
    """How a process died, "" if it did not."""
    if status == 0:
        return ""
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}"
    last = [line for line in errors.strip().splitlines() if line.strip()]
    return scrub(last[-1]) if last else f"ended with status {status}"


def _lines(text: str) -> tuple[dict[str, Any], ...]:
    """The probe's lines; anything else that libraries print is dropped."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"kind": '):
            try:
                found.append(json.loads(scrub(line)))
            except ValueError:
                continue
    return tuple(found)


def _device(facts: dict[str, Any], torch_cuda: str | None) -> DeviceReport:
    """One device, probed."""
    outcome = probe(facts["device"], DEVICE_SECONDS)
    trip = next((line for line in outcome.lines if line["kind"] == "roundtrip"), None)
    return DeviceReport(
        facts=facts,
        ops=tuple(line for line in outcome.lines if line["kind"] == "op"),
        roundtrip=trip,
        problem=outcome.problem,
        peer=peer(facts["arch"], torch_cuda) if facts["arch"] else None,
    )


def peer(arch: int, torch_cuda: str | None) -> dict[str, Any] | None:
    """What the installed bitsandbytes can do by itself on a capability; None without one."""
    try:
        file = audit_installed(PEER, of_arch(arch), parse_cuda(torch_cuda) if torch_cuda else None)
    except BitsAnywhereError as error:
        return {"problem": scrub(str(error))}
    if file is None:
        return None
    finding = file.devices[0].finding
    words = explain(finding, file)
    return {
        "version": file.version,
        "covered": finding.covered,
        "verdict": finding.verdict,
        "via": finding.via,
        "library": finding.library.rsplit("/", 1)[-1],
        "error": words.error_text,
        "reason": words.reason,
    }


def _software() -> dict[str, str]:
    """Versions, none of which says anything of the user."""
    versions = {
        "bitsanywhere": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in PACKAGES:
        found = _version(name)
        if found is not None:
            versions[name] = found
    return versions


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def scrub(text: str) -> str:
    """``text`` without folders that name the user, which a bug report should not carry.

    The environment's folder becomes ``<env>``, the home ``~``; others are shortened.
    """
    for folder, name in ((sys.prefix, "<env>"), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return PATHS.sub(_shorten, text)


def _shorten(match: re.Match[str]) -> str:
    """A path outside the common folders, by its last part only."""
    path = match[0]
    if path.startswith(COMMON):
        return path
    return ".../" + path.replace("\\", "/").rsplit("/", 1)[-1]
