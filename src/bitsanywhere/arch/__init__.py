"""Which GPU code is in a file, and on which chips it runs, without CUDA, torch or a GPU.

Example:
    >>> from bitsanywhere.arch import audit
    >>> report = audit(["bitsandbytes"], devices=["orin-nano"], cuda="12.6")  # doctest: +SKIP
    >>> report.covered("orin-nano")  # doctest: +SKIP
    False
"""

from __future__ import annotations

from bitsanywhere.arch.devices import DEVICES, Device, find_device, of_arch
from bitsanywhere.arch.explain import Explanation, explain
from bitsanywhere.arch.model import Code, Container, Library
from bitsanywhere.arch.report import DeviceReport, FileReport, Report, audit, audit_installed
from bitsanywhere.arch.verdict import Finding, judge

__all__ = [
    "DEVICES",
    "Code",
    "Container",
    "Device",
    "DeviceReport",
    "Explanation",
    "FileReport",
    "Finding",
    "Library",
    "Report",
    "audit",
    "audit_installed",
    "explain",
    "find_device",
    "judge",
    "of_arch",
]
