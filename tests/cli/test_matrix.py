"""`bitsanywhere matrix`, and how test runs become its records."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitsanywhere.arch.support import Record, load, merged, rows, save
from bitsanywhere.cli import matrix
from bitsanywhere.errors import InvalidArgumentError

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
    assert orin.endswith("| 7 tests, NVRTC 13.5, 0.1.0 | not tested |")
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


def test_test_runs_are_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "backends" / "cuda"
    folder.mkdir(parents=True)
    (folder / "test_made.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('arch', ['sm_87', 'sm_90'])\n"
        "@pytest.mark.parametrize('kernel', ['a', 'b'])\n"
        "def test_compiles(arch, kernel): assert (arch, kernel) != ('sm_90', 'b')\n"
        "def test_nothing_of_an_arch(): pass\n"
        "@pytest.mark.parametrize('arch', ['sm_75'])\n"
        "def test_skipped(arch): pytest.skip('no compiler')\n"
    )
    record = tmp_path / "support.json"
    save([H100], record)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.recording", "-q"]
    command += ["-p", "no:cacheprovider", "--record-support", str(record), str(folder)]
    command += ["--rootdir", str(tmp_path), "-c", "/dev/null"]
    code = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); import pytest; "
    code += "sys.exit(pytest.main(sys.argv[1:]))"
    command[1:3] = ["-c", code, f"{ROOT}:{ROOT / 'src'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {each.arch: (each.how, each.passed, each.failed) for each in load(record)}
    assert found["sm_90"] in {("run", 42, 0), ("compiled", 1, 1)}
    assert found["sm_87"] == ("compiled", 2, 0)
    assert "sm_75" not in found
    assert H100 in load(record)
