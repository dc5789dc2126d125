"""The GitHub Action's script, run by a shell as a runner would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "arch" / "fixtures"
yaml = pytest.importorskip("yaml")


def run(tmp_path: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    given = {name: field.get("default", "") for name, field in action["inputs"].items()} | inputs
    (step,) = action["runs"]["steps"]
    environment = {}
    for name, value in step["env"].items():
        for key, text in given.items():
            value = value.replace(f"${{{{ inputs.{key} }}}}", text)
        environment[name] = value.replace("${{ github.action_path }}", str(ROOT))
    assert not any("${{" in value for value in (*environment.values(), step["run"]))
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    python = tools / "python3"
    if not python.exists():
        python.symlink_to(sys.executable)
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{tools}:{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "dist").mkdir()
    for name in ("plain_sm80.so", "plain_sm80_ptx80.so"):
        shutil.copy(FIXTURES / name, tmp_path / "dist")
    return tmp_path


def test_passes_and_leaves_a_summary_and_sarif(wheels: Path) -> None:
    done = run(wheels, paths="dist/*.so", require="sm_80,sm_86", devices="a100", cuda="13.0")
    assert done.returncode == 0, done.stderr
    assert "plain_sm80_ptx80.so" in done.stdout
    assert "| sm_86 |" in (wheels / "summary.md").read_text().replace("\\", "")
    (made,) = json.loads((wheels / "bitsanywhere-audit.sarif").read_text())["runs"]
    assert len(made["results"]) == 2 * 3


@pytest.mark.parametrize(
    ("inputs", "status"),
    [
        ({"require": "sm_87"}, 1),
        ({"devices": "orin-nano,a100"}, 1),
        ({"require": "sm_8x"}, 2),
        ({"require": "sm_80", "paths": "dist/missing.whl"}, 2),
        ({"require": "$(touch owned)"}, 2),
        ({"require": "sm_80", "paths": "--help"}, 2),
    ],
)
def test_fails_for_the_right_reason(wheels: Path, inputs: dict[str, str], status: int) -> None:
    done = run(wheels, **{"paths": "dist/*.so", **inputs})
    assert done.returncode == status, done.stdout + done.stderr
    assert not (wheels / "owned").exists()
    if status == 1:
        # a failed job is the one whose summary is read
        assert "not covered" in done.stdout
        assert "is not covered" in (wheels / "summary.md").read_text()
