"""The wheel: pure Python, small, with everything that is needed at run time, and that in order."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = sorted(
    path.relative_to(SOURCE)
    for path in (SOURCE / "bitsanywhere").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, so that this has to hold what the build needs."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh folder with the wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def python(*args: str, path: Path, cache: Path) -> str:
    """What Python prints with the package in the folder `path`."""
    environment = os.environ | {"PYTHONPATH": str(path), "BITSANYWHERE_CACHE_DIR": str(cache)}
    command = [sys.executable, *args]
    done = subprocess.run(command, env=environment, cwd=cache, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_is_pure_and_small(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 400_000


def test_holds_modules_data_and_entry_points(installed):
    for path in FILES:
        if path.suffix == ".py":
            assert (installed / path).is_file(), path
        elif path.suffix != ".cuh":
            assert (installed / path).read_bytes() == (SOURCE / path).read_bytes(), path
    assert not (installed / "bitsandbytes").exists()
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    text = entry_points.read_text()
    assert "[bitsandbytes.backends]" in text
    assert "bitsanywhere = bitsanywhere.cli.__main__:main" in text


def without_docstrings(text: str) -> str:
    """The syntax tree of a module with the places of everything but docstrings and `pass`."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if hasattr(node, "end_lineno"):
            node.end_lineno = node.end_col_offset = None
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [each for each in body if not is_docstring(each)]
    return ast.dump(tree, include_attributes=True)


def is_docstring(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return isinstance(statement.value.value, str)
    return isinstance(statement, ast.Pass)


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ("def f():\n\n    return 1\n", True),
        ("def f():\n    return 1\n", False),
        ("def f():\n\n    return 2\n", False),
        ("def f():\n    pass\n    return 1\n", True),
    ],
)
def test_the_comparison_sees_code_and_lines(changed, same):
    original = 'def f():\n    """One."""\n    return 1\n'
    assert (without_docstrings(original) == without_docstrings(changed)) == same


def test_modules_differ_in_docstrings_only(installed):
    modules = [path for path in FILES if path.suffix == ".py"]
    texts = {
        path: ((SOURCE / path).read_text(), (installed / path).read_text()) for path in modules
    }
    for path, (ours, shipped) in texts.items():
        assert without_docstrings(ours) == without_docstrings(shipped), path
        assert ours.count("\n") == shipped.count("\n"), path
    ours, shipped = texts[Path("bitsanywhere/backends/cpu/parallel.py")]
    assert ast.get_docstring(ast.parse(ours))
    assert ast.get_docstring(ast.parse(shipped)) is None


def test_device_code_keeps_its_lines(installed):
    folder = Path("bitsanywhere/backends/cuda")
    shipped = json.loads((installed / folder / "sources.json").read_text())
    assert set(shipped) == {path.name for path in FILES if path.suffix == ".cuh"}
    for name, text in shipped.items():
        lines = (SOURCE / folder / name).read_text().split("\n")
        assert text.split("\n") == ["" if is_comment(line) else line for line in lines], name


def is_comment(line: str) -> bool:
    return line.lstrip().startswith("//")


def test_shows_and_computes_what_the_checkout_does(installed, cache):
    def report(path: Path) -> dict[str, Any]:
        script = ROOT / "tests" / "support" / "installed.py"
        return json.loads(python(str(script), path=path, cache=cache))

    wanted, found = report(SOURCE), report(installed)
    assert Path(found.pop("file")).is_relative_to(installed)
    assert Path(wanted.pop("file")).is_relative_to(SOURCE)
    assert found == wanted
    assert len(found["docstrings"]) > 400
    assert len(found["kernels"]) > 100


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--help", "validate"),
        ("audit --help", "where the GPU code in a wheel runs"),
        ("quantize --help", "a checkpoint in"),
        ("validate --help", "what 4 bits cost a model"),
        ("doctor", "quantization works here"),
    ],
)
def test_commands(installed, cache, command, said):
    output = python("-m", "bitsanywhere", *command.split(), path=installed, cache=cache)
    assert said in output
