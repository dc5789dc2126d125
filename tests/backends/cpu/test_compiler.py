"""Compiling on first use, the cache of object code, and what is not imported."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitsanywhere.backends.cpu import cache, compiler
from bitsanywhere.backends.cpu.machine import Machine, _best, host, levels_of
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.settings import settings

# The package itself imports neither numba nor llvmlite; a warm cache does without numba.
COLD = ["imported", "False", "right", "True", "compiled", "True"]
WARM = [*COLD[:-1], "False"]
SCRIPT = """
import sys
import torch
import bitsanywhere
print("imported", "numba" in sys.modules or "llvmlite" in sys.modules)
x = torch.arange(70.0)
packed, absmax = torch.ops.bitsanywhere.quantize_4bit(x, 64, "nf4", torch.uint8)
from bitsanywhere.ops.quantize_4bit import quantize_4bit_torch
print("right", torch.equal(packed, quantize_4bit_torch(x, 64, "nf4", torch.uint8)[0]))
print("compiled", "numba" in sys.modules)
"""


@pytest.fixture(autouse=True)
def fresh_settings():
    """The environment is read anew by each test and after it."""
    settings.cache_clear()
    yield
    settings.cache_clear()


def use_cache(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("BITSANYWHERE_CACHE_DIR", folder)
    settings.cache_clear()


def run_script(folder: Path) -> str:
    """Output of `SCRIPT` in a new process with its cache in `folder`."""
    environment = {**os.environ, "BITSANYWHERE_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_use_compiles_and_the_next_process_loads(tmp_path):
    assert run_script(tmp_path).split() == COLD
    files = list((tmp_path / "cpu").iterdir())
    assert [file.suffix for file in files] == [".o"]
    assert run_script(tmp_path).split() == WARM
    blob = bytearray(files[0].read_bytes())
    blob[100] ^= 1
    files[0].write_bytes(blob)
    assert run_script(tmp_path).split() == COLD


def test_other_processors_and_variants_have_other_files(monkeypatch):
    keys = []
    monkeypatch.setattr(cache, "read", lambda key: keys.append(key) or b"code")
    monkeypatch.setattr(compiler, "_load", lambda code, machine: None)
    for name in levels_of(host().level):
        for dtype in ("float32", "bfloat16"):
            compiler._make("quantize_4bit", Machine.of(name), {"dtype": dtype})
    compiler._make("dequantize_4bit", host(), {"dtype": "float32"})
    assert len(set(keys)) == len(keys)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    use_cache(monkeypatch, str(tmp_path))
    return tmp_path / "cpu"


def test_what_was_written_is_read(folder):
    assert cache.read("k") is None
    cache.write("k", b"machine code")
    assert cache.read("k") == b"machine code"
    assert [file.name for file in folder.iterdir()] == ["k.o"]


@pytest.mark.parametrize("damage", [b"", b"short", bytes(64)])
def test_a_damaged_file_counts_as_absent(folder, damage, caplog):
    cache.write("k", b"machine code")
    (folder / "k.o").write_bytes(damage)
    assert cache.read("k") is None
    assert "damaged" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_is_not_used(folder, mode, caplog):
    cache.write("k", b"machine code")
    folder.chmod(mode)
    assert cache.read("k") is None
    cache.write("other", b"machine code")
    assert "other users" in caplog.text
    assert not (folder / "other.o").exists()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    use_cache(monkeypatch, str(tmp_path / "file"))
    assert cache.read("k") is None
    with caplog.at_level(logging.WARNING):
        cache.write("k", b"machine code")
    assert "not cached" in caplog.text


def test_a_relative_folder_is_an_error(monkeypatch):
    use_cache(monkeypatch, "here")
    with pytest.raises(InvalidArgumentError, match="absolute"):
        cache.folder()


AVX2 = {"avx2": True, "fma": True, "f16c": True}
AVX512 = {**AVX2, **dict.fromkeys(("avx512f", "avx512bw", "avx512vl", "avx512dq"), True)}


@pytest.mark.parametrize(
    ("triple", "features", "best"),
    [
        ("x86_64-unknown-linux-gnu", {**AVX512, "avx512bf16": True}, "avx512_bf16"),
        ("x86_64-unknown-linux-gnu", AVX512, "avx512"),
        ("x86_64-unknown-linux-gnu", {**AVX512, "avx512bw": False}, "avx2"),
        ("x86_64-pc-windows-msvc", AVX2, "avx2"),
        ("x86_64-unknown-linux-gnu", {"avx2": True}, "generic"),
        ("aarch64-unknown-linux-gnu", {}, "neon"),
        ("arm64-apple-darwin", {}, "neon"),
        ("riscv64-unknown-linux-gnu", {}, "generic"),
    ],
)
def test_the_level_of_a_processor(triple, features, best):
    assert _best(triple, features) == best


def test_levels_that_a_processor_lacks_are_refused():
    assert levels_of("avx2") == ("avx2", "generic")
    assert levels_of("neon") == ("neon", "generic")
    wrong = "neon" if host().level != "neon" else "avx2"
    with pytest.raises(ValueError, match=host().level):
        Machine.of(wrong)
