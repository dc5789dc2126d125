"""Results on disk: each suite's file is written whole, and reused while its inputs are the same."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bitsanywhere.validate.plan import REFERENCE, Plan
from bitsanywhere.version import __version__

SCHEMA = 1
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numba")


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all; NaN is not JSON and raises ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read(path: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """What `write_json` left, if it is complete and was made from the very same inputs."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("inputs") == inputs
    return found if same and found.get("complete") else None


def inputs(plan: Plan, suite: str) -> dict[str, Any]:
    """What a suite's result depends on, as JSON."""
    columns = plan.columns(suite)
    compared = plan.reference if REFERENCE in columns else None
    return {
        "schema": SCHEMA,
        "bitsanywhere": __version__,
        "suite": suite,
        "columns": list(columns),
        "model": fingerprint(plan.model),
        "reference": None if compared is None else fingerprint(compared),
        "device": plan.device,
        "settings": asdict(plan.settings),
        "packages": versions(),
    }


def fingerprint(path: Path) -> str:
    """A digest of the names, sizes and times of a model's files; their content is not read."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what takes part, where installed."""
    found = {"bitsanywhere": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
