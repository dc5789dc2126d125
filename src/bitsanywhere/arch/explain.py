"""Puts a finding into words: the reason, the error that a user meets, the sources and the fix."""

from __future__ import annotations

from dataclasses import dataclass

from bitsanywhere.arch.model import Library
from bitsanywhere.arch.report import FileReport
from bitsanywhere.arch.rules import ERRORS, RULES, SOURCES, CudaError, Source
from bitsanywhere.arch.verdict import Finding

OURS = "On the device, `pip install bitsanywhere` makes bitsandbytes run as it is. Or: "
MOST_NAMES = 50
NOT_ABOUT_CODE = ("platform-tag", "cuda-major", "no-gpu-code")


@dataclass(frozen=True)
class Explanation:
    """Everything a reader wants to know about one finding.

    Attributes:
        reason: why the verdict is what it is.
        error: the error that a user would meet, or None if it runs.
        error_text: its text as it appears, with number and name; "" if it runs.
        evidence: "documented", "reported", "inferred" or "measured".
        sources: what supports the verdict.
        contrary: reports that say otherwise.
        fix: what mends it; "" if nothing has to be mended.
    """

    reason: str
    error: CudaError | None
    error_text: str
    evidence: str
    sources: tuple[Source, ...]
    contrary: tuple[Source, ...]
    fix: str


def explain(finding: Finding, file: FileReport) -> Explanation:
    """The words for a finding of ``file``."""
    rule = RULES[finding.verdict]
    library = file.by_path.get(finding.library)
    error = ERRORS.get(finding.error)
    if finding.error == "pip" and not file.path.endswith(".whl"):
        error = None
    return Explanation(
        reason=" ".join([rule.statement, *_details(finding, library)]),
        error=error,
        error_text=_error_text(error, finding, file),
        evidence=rule.evidence,
        sources=tuple(SOURCES[key] for key in rule.sources),
        contrary=tuple(SOURCES[key] for key in rule.contrary),
        fix=_fix(finding, file.package),
    )


def _details(finding: Finding, library: Library | None) -> list[str]:
    """What this very library holds, after the general statement."""
    told = []
    if finding.verdict in NOT_ABOUT_CODE:
        return [f"It is for {finding.via}."] if finding.via else []
    if library is not None and not finding.covered:
        told.append(
            f"It holds machine code for {_listed(library.sass)} and PTX for {_listed(library.ptx)};"
            f" {finding.device.name} has capability {finding.device.capability}."
        )
    if finding.gaps and finding.gaps < finding.judged:
        told.append(f"{finding.gaps} of its {finding.judged} fat binaries have nothing that fits.")
    if finding.optional:
        told.append(
            f"{finding.optional} fat binaries for one chip or family only were left out of account."
        )
    if finding.driver is not None:
        told.append(f"The driver has to support CUDA {_dotted(finding.driver)} or later.")
    return told


def _error_text(error: CudaError | None, finding: Finding, file: FileReport) -> str:
    """The error as a user sees it."""
    if error is None:
        return ""
    if error.code is not None:
        return f"CUDA error {error.code} ({error.name}): {error.text}"
    if error.name == "pip":
        return f"{_name(file.path)} {error.text}"
    return f"{_name(finding.library)}: {error.text}"


def _fix(finding: Finding, package: str) -> str:
    """What mends it, for this device and this package."""
    device = finding.device
    fix = RULES[finding.verdict].fix.format(
        arch=device.arch,
        capability=device.capability,
        driver=_dotted(finding.driver) if finding.driver else "",
        hosts=" or ".join(device.hosts),
    )
    ours = package.lower() == "bitsandbytes" and finding.verdict not in NOT_ABOUT_CODE
    return f"{OURS}{fix}" if fix and ours else fix


def _listed(names: tuple[str, ...]) -> str:
    """Names in a sentence; no real library has more than a few dozen."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more if names else "nothing"


def _name(path: str) -> str:
    """The last part of a path."""
    return path.rsplit("/", 1)[-1]


def _dotted(version: tuple[int, int]) -> str:
    """``12.6``."""
    return f"{version[0]}.{version[1]}"
