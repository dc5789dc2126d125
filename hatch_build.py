"""Builds the wheel's copies of the sources, without what only developers read.

Python loses its comments, the docstrings of internal modules, and everywhere those of private and
nested functions and classes. CUDA sources lose their comment lines and go into one file. Line
numbers stay, so that tracebacks and compilers name the repository's lines. This saves a fifth of
the wheel. The sdist and an editable install hold the sources as they are.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Packages in which only what their `__init__` imports is public, and modules there that are public.
INTERNAL = {"arch", "backends", "cli", "convert", "integrations", "ops", "validate"}
PUBLIC = {"convert/options.py", "convert/quantize.py"}
PUBLIC |= {f"{package}/__init__.py" for package in ("arch", "convert", "validate")}
# As in backends/cuda/jit/source.py, which reads the bundle.
CUDA_COMMENT = re.compile(r"^[ \t]*//.*", re.MULTILINE)
CUDA_BUNDLE = "backends/cuda/sources.json"

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class WheelHook(BuildHookInterface):
    """hatchling's custom hook of the wheel target."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts the stripped copies in the sources' place."""
        if version == "editable":
            return
        self._copies = tempfile.TemporaryDirectory()
        package = Path(self.root, "src", "bitsanywhere")
        texts = {CUDA_BUNDLE: bundled(package / "backends" / "cuda")}
        for source in sorted(package.rglob("*.py")):
            place = source.relative_to(package)
            texts[place.as_posix()] = stripped(package, place)
        for name, text in texts.items():
            copy = Path(self._copies.name, name)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(text.encode())
            build_data["force_include"][str(copy)] = f"bitsanywhere/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Deletes the copies."""
        if version != "editable":
            self._copies.cleanup()


def bundled(folder: Path) -> str:
    """The CUDA sources of a folder as JSON, name -> text."""
    sources = sorted(folder.glob("*.cuh"))
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    return json.dumps({name: CUDA_COMMENT.sub("", text) for name, text in texts.items()})


def stripped(package: Path, place: Path) -> str:
    """The wheel's text of the module `place` of the package's folder."""
    text = (package / place).read_text(encoding="utf-8")
    folder = place.parts[0]
    if folder not in INTERNAL or place.as_posix() in PUBLIC:
        return stripped_python(text)
    init = (package / folder / "__init__.py").read_text(encoding="utf-8")
    return stripped_python(text, imported(init))


def imported(text: str) -> set[str]:
    """The names that a module imports from others."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes for alias in node.names}


def stripped_python(text: str, public: set[str] | None = None) -> str:
    """A module's text without comments and without the docstrings that nobody is shown.

    Args:
        text: the module's source.
        public: its public names, for a module of which nothing else is; None for an ordinary one.
    """
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    module = ast.parse(text)
    # Commands show their module's docstring as help.
    shown = any(isinstance(node, ast.Name) and node.id == "__doc__" for node in ast.walk(module))
    for node in hidden(module, public is not None and not shown, public):
        strings = [statement for statement in node.body if is_string(statement)]
        for string in strings:
            first, last = string.lineno - 1, string.end_lineno or string.lineno
            lines[first:last] = [""] * (last - first)
        if strings == node.body and not isinstance(node, ast.Module):
            lines[strings[0].lineno - 1] = " " * strings[0].col_offset + "pass"
    return "\n".join(lines)


def is_string(statement: ast.stmt) -> bool:
    """Whether it is a docstring, of the module, class or function or of the name before it."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def hidden(
    node: ast.Module | Definition, itself: bool, public: set[str] | None = None
) -> Iterator[ast.Module | Definition]:
    """What loses its docstrings: `node`, if `itself` is hidden, and what is hidden inside of it."""
    if itself:
        yield node
    for child in definitions(node):
        if public is not None:
            yield from hidden(child, child.name not in public)
        else:
            private = child.name.startswith("_") and not child.name.endswith("__")
            inherited = itself or not isinstance(node, (ast.Module, ast.ClassDef))
            yield from hidden(child, private or inherited)


def definitions(node: ast.AST) -> Iterator[Definition]:
    """The functions and classes defined in a node's body, also under an `if`, not deeper."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield child
        else:
            yield from definitions(child)
