"""The audit as JSON, described by ``audit.schema.json`` beside this file."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from bitsanywhere.arch.explain import explain
from bitsanywhere.arch.model import REGIONS, Library, compressions, names
from bitsanywhere.arch.report import DeviceReport, FileReport, Report
from bitsanywhere.arch.rules import RULES, SOURCES, CudaError, Source
from bitsanywhere.arch.verdict import Finding
from bitsanywhere.version import __version__

SCHEMA_VERSION = 1


def as_json(report: Report) -> str:
    """The report as indented JSON."""
    return json.dumps(to_dict(report), indent=2) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema that `as_json` keeps to."""
    text = resources.files(__package__ or "").joinpath("audit.schema.json").read_text("utf-8")
    return json.loads(text)


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain dictionaries and lists."""
    verdicts = {
        finding.verdict
        for file in report.files
        for device in file.devices
        for finding in (device.finding, *device.libraries)
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "bitsanywhere", "version": __version__},
        "cuda": _version(report.cuda),
        "files": [_file(each) for each in report.files],
        "rules": {verdict: _rule(verdict) for verdict in RULES if verdict in verdicts},
    }


def _file(file: FileReport) -> dict[str, Any]:
    return {
        "path": file.path,
        "package": file.package,
        "version": file.version,
        "without_gpu_code": file.without_gpu_code,
        "libraries": [_library(each) for each in file.libraries],
        "devices": [_device(each, file) for each in file.devices],
    }


def _library(library: Library) -> dict[str, Any]:
    return {
        "path": library.path,
        "system": library.system,
        "machine": library.machine,
        "cuda": _version(library.cuda),
        "needs_cuda": list(library.needs),
        **{name: _region(library, name) for name in REGIONS},
    }


def _region(library: Library, name: str) -> dict[str, Any]:
    containers = library.region(name)
    return {
        "containers": sum(each.count for each in containers),
        "sass": list(names(containers, "sass")),
        "ptx": list(names(containers, "ptx")),
        "lto": list(names(containers, "lto")),
        "compression": list(compressions(containers)),
    }


def _device(report: DeviceReport, file: FileReport) -> dict[str, Any]:
    told = explain(report.finding, file)
    device = report.finding.device
    return {
        "device": device.name,
        "title": device.title,
        "capability": device.capability,
        **_finding(report.finding, file),
        "evidence": told.evidence,
        "sources": [_source(each) for each in told.sources],
        "contrary": [_source(each) for each in told.contrary],
        "loaded": list(report.loaded),
        "libraries": [_finding(each, file) for each in report.libraries],
    }


def _finding(finding: Finding, file: FileReport) -> dict[str, Any]:
    told = explain(finding, file)
    return {
        "library": finding.library or None,
        "covered": finding.covered,
        "verdict": finding.verdict,
        "via": finding.via or None,
        "reason": told.reason,
        "error": _error(told.error, told.error_text),
        "fix": told.fix or None,
    }


def _rule(verdict: str) -> dict[str, Any]:
    rule = RULES[verdict]
    return {
        "covered": rule.covered,
        "statement": rule.statement,
        "evidence": rule.evidence,
        "sources": [_source(SOURCES[key]) for key in rule.sources],
        "contrary": [_source(SOURCES[key]) for key in rule.contrary],
    }


def _error(error: CudaError | None, message: str) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"code": error.code, "name": error.name, "text": error.text, "message": message}


def _source(source: Source) -> dict[str, str]:
    return {
        "title": source.title,
        "url": source.url,
        "evidence": source.evidence,
        "says": source.says,
    }


def _version(version: tuple[int, int] | None) -> str | None:
    return f"{version[0]}.{version[1]}" if version else None
