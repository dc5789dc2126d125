"""The audit as SARIF 2.1.0, which code scanning services show beside a build."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from bitsanywhere.arch.explain import explain
from bitsanywhere.arch.report import DeviceReport, FileReport, Report
from bitsanywhere.arch.rules import RULES, SOURCES
from bitsanywhere.version import __version__

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_sarif(report: Report) -> str:
    """One result for each file and device: an error where it is not covered, else a pass."""
    results = [_result(file, each) for file in report.files for each in file.devices]
    used = [verdict for verdict in RULES if any(each["ruleId"] == verdict for each in results)]
    for each in results:
        each["ruleIndex"] = used.index(each["ruleId"])
    driver = {
        "name": "bitsanywhere-audit",
        "semanticVersion": __version__,
        "rules": [_rule(verdict) for verdict in used],
    }
    run = {"tool": {"driver": driver}, "columnKind": "utf16CodeUnits", "results": results}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(verdict: str) -> dict[str, Any]:
    """The description of a verdict, with its sources."""
    rule = RULES[verdict]
    sources = [SOURCES[key] for key in (*rule.sources, *rule.contrary)]
    told = "\n".join(f"- [{each.title}]({each.url}): {each.says}" for each in sources)
    return {
        "id": verdict,
        "shortDescription": {"text": rule.statement},
        "help": {"text": rule.statement, "markdown": f"{rule.statement}\n\n{told}"},
        "defaultConfiguration": {"level": "none" if rule.covered else "error"},
        "properties": {"evidence": rule.evidence},
    }


def _result(file: FileReport, report: DeviceReport) -> dict[str, Any]:
    """The verdict on one file for one device."""
    found = report.finding
    words = explain(found, file)
    runs = "runs" if found.covered else "does not run"
    parts = [f"{file.path} {runs} on {found.device.name}.", words.reason, words.error_text]
    parts += [f"Fix: {words.fix}"] if words.fix else []
    return {
        "ruleId": found.verdict,
        "kind": "pass" if found.covered else "fail",
        "level": "none" if found.covered else "error",
        "message": {"text": " ".join(part for part in parts if part)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(file.path.replace("\\", "/"), safe="/")}
                },
                "logicalLocations": [{"name": found.library or "-", "kind": "module"}],
            }
        ],
        "partialFingerprints": {
            "verdict/v1": f"{file.package}:{found.library}:{found.device.name}:{found.verdict}"
        },
        "properties": {"device": found.device.name, "capability": found.device.capability},
    }
