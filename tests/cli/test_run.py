"""`bitsanywhere run`."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from bitsanywhere.cli.__main__ import main

HIDING = runpy.run_path(str(Path(__file__).parents[1] / "support" / "hiding.py"))
SCRIPT = """
import json, sys
import bitsandbytes, helper_of_the_script
from importlib.metadata import version
print(json.dumps([__name__, sys.argv, bitsandbytes.__version__, version("bitsandbytes")]))
"""


@pytest.fixture(autouse=True)
def process(monkeypatch, tmp_path):
    """No bitsandbytes; argv, path and modules are put back afterwards."""
    monkeypatch.setattr(sys, "argv", ["bitsanywhere"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = dict(sys.modules)
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        del sys.modules[name]
    HIDING["hide_bitsandbytes"]()
    (tmp_path / "helper_of_the_script.py").touch()
    yield
    for name in [name for name in sys.modules if name not in before]:
        if name.split(".")[0] in ("bitsandbytes", "helper_of_the_script", "script"):
            del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


ARGUMENTS = ["7", "--force", "-m", "x", "-h", "--", "run", "--version", ""]


def test_script_sees_its_arguments_and_our_library(script, capsys):
    assert main(["run", str(script), *ARGUMENTS]) == 0
    name, argv, module, metadata = eval(capsys.readouterr().out)
    assert name == "__main__"
    assert argv == [str(script), *ARGUMENTS]
    assert module == metadata == "0.50.2+bitsanywhere"


def test_module(script, capsys, monkeypatch):
    monkeypatch.chdir(script.parent)
    assert main(["run", "-m", "script", *ARGUMENTS]) == 0
    name, argv, module, _ = eval(capsys.readouterr().out)
    assert name == "__main__"
    assert Path(argv[0]) == script
    assert argv[1:] == ARGUMENTS
    assert module == "0.50.2+bitsanywhere"


@pytest.mark.parametrize("code", [0, 3, "'a message'", None])
def test_exit_status_passes_through(tmp_path, code):
    path = tmp_path / "script.py"
    path.write_text(f"import sys\nsys.exit({code})")
    with pytest.raises(SystemExit) as caught:
        main(["run", str(path)])
    assert caught.value.code == (eval(code) if isinstance(code, str) else code)


def test_exceptions_pass_through(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("raise KeyError('theirs')")
    with pytest.raises(KeyError, match="theirs"):
        main(["run", str(path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "there is no file 'nothing.py'"),
        (["-m", "nothing.at_all"], "there is no module 'nothing.at_all'"),
        ([], "no script given"),
        (["-m"], "no script given"),
    ],
)
def test_nothing_to_run(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_module_whose_package_fails_says_so(tmp_path, monkeypatch):
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "__init__.py").write_text("import a_missing_dependency")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_missing_dependency"):
        main(["run", "-m", "failing.part"])


def test_force_prefers_ours(script, capsys):
    """Our finder stands first, before the one that would find a real one."""
    assert main(["run", "--force", str(script)]) == 0
    assert type(sys.meta_path[0]).__name__ == "Finder"
    assert "0.50.2+bitsanywhere" in capsys.readouterr().out


def test_exit_status_of_the_process(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("import sys; print(sys.argv[1:]); sys.exit(5)")
    command = [sys.executable, "-m", "bitsanywhere.cli", "run", str(path), "--a", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (5, "['--a', 'b']\n"), done.stderr
