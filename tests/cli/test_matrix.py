"""`bitsanywhere matrix`, and how test runs become its records."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitsanywhere.arch.support import Record, load, rows
from bitsanywhere.cli import matrix
from bitsanywhere.errors import InvalidArgumentError
from tests.support.recording import EVERY_KERNEL, SUPPORT, merge, merged, save

ROOT = Path(__file__).parents[2]
H100 = Record("sm_90", "run", "NVIDIA H100, driver of CUDA 13.0", 42, 0, "0.1.0")
ORIN = Record("sm_87", "compiled", "NVRTC 13.5", 7, 0, "0.1.0")
BROKEN = Record("sm_75", "compiled", "NVRTC <13.5>", 6, 1, "0.1.0")


def test_rows_hold_every_known_architecture() -> None:
    made = {row.arch: row for row in rows([H100, ORIN])}
    assert {"sm_75", "sm_87", "sm_90", "sm_121"} <= set(made)
    assert "sm_72" not in made
    assert made["sm_87"].devices == ("Jetson Orin Nano", "Jetson Orin NX", "Jetson AGX Orin")
    assert (made["sm_87"].compiled, made["sm_87"].run) == ((ORIN,), ())
    assert made["sm_90"].run == (H100,)


def test_formats() -> None:
    made = rows([H100, ORIN, BROKEN])
    lines = matrix.as_markdown(made).splitlines()
    orin = next(line for line in lines if line.startswith("| sm_87 "))
    assert orin.endswith("| every kernel, NVRTC 13.5, 0.1.0 | not tested |")
    page = matrix.as_html(made)
    assert "NVRTC &lt;13.5&gt;" in page
    assert (page.count('class="tested"'), page.count('class="failed"')) == (2, 1)
    found = json.loads(matrix.as_json(made))["architectures"]
    assert next(each for each in found if each["arch"] == "sm_90")["run"][0]["passed"] == 42


@pytest.mark.parametrize("name", ["markdown", "html", "json"])
def test_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    matrix.configure_parser(parser)
    assert matrix.execute(parser.parse_args(["--format", name])) == 0
    assert "sm_87" in capsys.readouterr().out


def test_a_new_record_replaces_the_old_one_of_its_machine(tmp_path: Path) -> None:
    newer = Record("sm_90", "run", H100.by, 50, 0, "0.2.0")
    path = tmp_path / "support.json"
    save(merged([H100, ORIN], [newer]), path)
    assert load(path) == (ORIN, newer)


@pytest.mark.parametrize("text", ["", "{}", '{"records": [{"arch": "sm_90"}]}', "[]"])
def test_files_of_another_kind(text: str, tmp_path: Path) -> None:
    path = tmp_path / "support.json"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match="holds no test records"):
        load(path)


MADE = """
import pytest

@pytest.mark.parametrize("arch", [87, 90])
def test_everything_compiles(arch): assert arch != 90

@pytest.mark.parametrize("arch", [87])
def test_a_selection_compiles(arch): pass
"""
SKIPPED = """
import pytest

@pytest.mark.parametrize("arch", [75])
def test_everything_compiles(arch): pytest.skip("no compiler")
"""


def record(folder: Path, test: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Runs one made test file with the plugin, as documented."""
    made, path = folder / "test_made.py", folder / "support.json"
    made.write_text(test)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT / 'src'}\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.recording", "-q"]
    command += ["-p", "no:cacheprovider", "--record-support", str(path), str(made)]
    command += ["--rootdir", str(folder), "-c", str(folder / "pytest.ini")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done, path


def test_test_runs_are_recorded(tmp_path: Path) -> None:
    """Only a test of every kernel counts, and what was there is kept."""
    pytest.importorskip("cuda.pathfinder")
    save([H100], tmp_path / "support.json")
    done, path = record(tmp_path, MADE)
    assert done.returncode == 1, done.stdout + done.stderr
    found = [(each.arch, each.how, each.passed, each.failed) for each in load(path)]
    assert found == [
        ("sm_87", "compiled", 1, 0),
        ("sm_90", "compiled", 0, 1),
        ("sm_90", "run", 42, 0),
    ]


def test_a_run_that_shows_nothing_records_nothing(tmp_path: Path) -> None:
    done, path = record(tmp_path, SKIPPED)
    assert "nothing is recorded" in done.stdout
    assert not path.exists()


def test_records_of_other_machines_are_merged(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "support.json", tmp_path / "h100.json"
    save([ORIN], ours)
    save([H100], theirs)
    merge([str(theirs)], into=ours)
    assert load(ours) == (ORIN, H100)


def test_the_records_that_ship_are_as_written(tmp_path: Path) -> None:
    save(load(SUPPORT), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == SUPPORT.read_bytes()


def test_the_test_that_is_recorded_exists() -> None:
    tests = (ROOT / "tests" / "backends" / "cuda" / "test_compile.py").read_text()
    assert f"def {EVERY_KERNEL}(arch" in tests
