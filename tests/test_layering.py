"""Imports point one way: formats, targets -> ops <- backends; ops -> ... -> integrations, cli."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "bitsanywhere"
PACKAGE = "bitsanywhere"

# What each part of the package may import, at any depth and also inside functions.
FOUNDATION = {"errors", "formats", "version"}
ALLOWED = {
    "version": set(),
    "errors": set(),
    "formats": {"errors"},
    "targets": {"errors"},
    "ops": {"errors", "formats", "targets"},
    "settings": {"errors"},
    "backends": {"errors", "formats", "targets", "ops", "version", "settings"},
    "checkpoint": {"errors", "formats"},
    "quant_state": {"errors", "formats", "ops", "checkpoint"},
    "checked_weight": {"ops", "quant_state"},
    "functional": {"errors", "formats", "ops", "checkpoint", "quant_state", "checked_weight"},
    "utils": {"errors", "checkpoint"},
    "autograd_int8": {"errors", "ops", "functional"},
    "autograd": {"errors", "ops", "quant_state", "checked_weight", "functional", "autograd_int8"},
    "nn": FOUNDATION
    | {"utils", "optim", "ops", "checkpoint", "quant_state", "functional", "autograd"},
    "optim": FOUNDATION | {"ops", "functional", "quant_state"},
    "convert": FOUNDATION | {"ops", "checkpoint", "quant_state", "functional"},
    "validate": FOUNDATION | {"compat", "convert"},
    "arch": {"errors", "version"},
    "__main__": {"cli"},
}
EVERYTHING = {"integrations", "cli", "compat", "warmup", ""}


def part_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of the package that a file imports, wherever in the file."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [module]
            if module == PACKAGE:
                names = [f"{PACKAGE}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == PACKAGE:
                parts.add(name.split(".")[1] if "." in name else "")
    return parts


FILES = sorted(path for path in SOURCE.rglob("*.py") if part_of(path) not in EVERYTHING)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"say in {__file__} what {part} may import"
    wrong = imported_parts(path) - ALLOWED[part] - {part}
    assert not wrong, f"{part} must not import {sorted(wrong)}"


def test_the_walker_sees_every_kind_of_import(tmp_path):
    source = tmp_path / "x.py"
    source.write_text(
        "import bitsanywhere.cli.run\nfrom bitsanywhere import nn\n"
        "def f():\n    from bitsanywhere.optim.adam import Adam\n"
    )
    assert imported_parts(source) == {"cli", "nn", "optim"}


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_backends_do_not_import_each_other(backend):
    other = {"cpu": "cuda", "cuda": "cpu"}[backend]
    for path in (SOURCE / "backends" / backend).rglob("*.py"):
        assert f"backends.{other}" not in path.read_text(), path
