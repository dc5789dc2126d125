"""The wiring of commands."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from bitsanywhere.cli.__main__ import COMMANDS, main
from bitsanywhere.version import __version__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_file(name):
    module = importlib.import_module(f"bitsanywhere.cli.{name}")
    assert callable(module.configure_parser)
    assert callable(module.execute)


def test_help_lists_every_command(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(f"    {name} " in shown for name in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_the_package_itself_is_the_command():
    command = [sys.executable, "-X", "importtime", "-m", "bitsanywhere", "audit", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: bitsanywhere audit ")
    assert "bitsanywhere.arch.present" in done.stderr
    assert "torch" not in done.stderr


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["quantise"])
    assert caught.value.code == 2
    assert "quantise" in capsys.readouterr().err


def test_a_command_imports_no_other_and_no_torch():
    code = (
        "import sys; sys.argv[0] = 'bitsanywhere'\n"
        "from bitsanywhere.cli.__main__ import main\n"
        "try: main(['audit', '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted(n for n in sys.modules if n in "
        "('torch', 'numpy', 'bitsanywhere.cli.run', 'bitsanywhere.cli.pack')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr
