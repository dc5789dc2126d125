"""`bitsanywhere pack`, from arguments to files."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bitsanywhere.backends.cuda.jit import KernelSource, nvrtc
from bitsanywhere.backends.cuda.jit.packs import Manifest
from bitsanywhere.cli import pack
from bitsanywhere.errors import BackendUnavailable
from bitsanywhere.settings import settings

SOURCES = Path(__file__).parents[1] / "backends" / "cuda" / "jit" / "sources"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command with a small kernel in the place of all kernels."""
    monkeypatch.setenv("BITSANYWHERE_PACK_DIR", str(tmp_path / "packs"))
    settings.cache_clear()
    import bitsanywhere.backends.cuda as cuda

    src = KernelSource("saxpy.cuh", "saxpy", (("FACTOR_BIAS", 0),), root=str(SOURCES))
    monkeypatch.setattr(cuda, "kernel_sources", lambda target: [src], raising=False)

    def execute(*words):
        parser = argparse.ArgumentParser(prog="bitsanywhere pack")
        pack.configure_parser(parser)
        return pack.execute(parser.parse_args([str(word) for word in words]))

    yield execute
    settings.cache_clear()


@pytest.fixture
def compiler():
    try:
        return nvrtc.find()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_build_install_list(run, compiler, tmp_path, capsys):
    assert run("list") == 0
    assert "No kernel packs" in capsys.readouterr().out
    out = tmp_path / "new"
    assert run("build", "--arch", "sm_87,sm_75", "--out", out, "--nvrtc", compiler.path) == 0
    assert Manifest.read(out).archs == ("sm_75", "sm_87")
    assert run("install", out) == 0
    capsys.readouterr()
    assert run("list") == 0
    assert "2 kernels for sm_75, sm_87" in capsys.readouterr().out


def test_all_builds_every_architecture(run, compiler, tmp_path):
    assert run("build", "--arch", "all", "--out", tmp_path / "new") == 0
    expected = tuple(f"sm_{arch}" for arch in compiler.archs if arch >= 75)
    assert Manifest.read(tmp_path / "new").archs == expected


def test_errors_are_one_message_and_status_1(run, compiler, tmp_path, capsys):
    assert run("build", "--arch", "sm_20", "--out", tmp_path / "new") == 1
    assert "does not compile for sm_20" in capsys.readouterr().err
    assert run("build", "--arch", "sm_87", "--out", tmp_path / "new", "--nvrtc", "/nowhere") == 1
    assert "/nowhere is not a libnvrtc" in capsys.readouterr().err
    assert run("install", tmp_path) == 1
    assert "manifest.json cannot be read" in capsys.readouterr().err


def test_list_reports_a_damaged_pack(run, tmp_path, capsys):
    (tmp_path / "packs" / ("0" * 16)).mkdir(parents=True)
    (tmp_path / "packs").chmod(0o755)
    assert run("list") == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("build",), ("build", "--arch", "all"), ("install",)])
def test_missing_arguments_are_usage_errors(run, words):
    with pytest.raises(SystemExit) as info:
        run(*words)
    assert info.value.code == 2
