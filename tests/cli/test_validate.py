"""The command: exit statuses, what it writes and prints, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitsanywhere.cli import validate as command
from bitsanywhere.cli.__main__ import main
from bitsanywhere.validate import run

NEEDED = ("transformers", "peft", "accelerate")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model; nothing here loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replaces the processes by made-up results of `logits`; returns what may be changed."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    given = {"nll": 33.0}

    def runner(job):
        result = {"tokens": [10, 11], "kl": [0.1, 0.3], "agree": [9, 10], "nll": [30.0, 33.0]}
        found = {column: {"result": dict(result)} for column in job.columns}
        for column in ("bitsanywhere", "dequantized"):
            if column in found:
                found[column]["result"]["nll"] = [30.0, given["nll"]]
        return found

    monkeypatch.setattr(run, "run_worker", runner)
    monkeypatch.setattr(command, "peer_installed", lambda: False)
    return given


def test_passed_is_0_and_everything_is_written(model, measured, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["validate", str(model), "--suite", "logits", "--out", str(out)]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"logits.json", "validate.json", "report.html", "logits.svg"}
    content = json.loads((out / "validate.json").read_text())
    assert content["passed"]
    assert content["suites"][0]["suite"] == "logits"
    assert "<svg" in (out / "report.html").read_text()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "perplexity in 4 bits over bf16" in captured.err


def test_json_on_standard_output_is_only_that(model, measured, tmp_path, capsys):
    out = tmp_path / "out"
    main(["validate", str(model), "--suite", "logits", "--out", str(out), "--json"])
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((out / "validate.json").read_text())


def test_a_missed_line_is_1(model, measured, tmp_path):
    measured["nll"] = 40.0
    out = str(tmp_path / "out")
    assert main(["validate", str(model), "--suite", "logits", "--out", out]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "logits,beauty"], "The suites are roundtrip"),
        (["--suite", ","], "The suites are roundtrip"),
        (["--reference", "nowhere"], "nowhere is not a model"),
    ],
)
def test_bad_usage_is_2(model, measured, tmp_path, capsys, arguments, words):
    status = main(["validate", str(model), "--out", str(tmp_path / "out"), *arguments])
    assert status == 2
    assert words in capsys.readouterr().err


def test_a_device_that_is_not_there_is_2(model, measured, tmp_path, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = main(["validate", str(model), "--device", "cuda", "--out", str(tmp_path / "out")])
    assert status == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_missing_packages_are_named(model, measured, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["validate", str(model), "--out", str(tmp_path / "out")]) == 2
    assert "not installed: transformers, peft" in capsys.readouterr().err


def test_no_output_folder_is_a_usage_error(model):
    with pytest.raises(SystemExit) as stop:
        main(["validate", str(model)])
    assert stop.value.code == 2


def test_interruption_is_130_and_names_what_is_kept(model, measured, tmp_path, capsys, monkeypatch):
    def interrupted(job, runner=run.run_worker):
        if job.suite == "training":
            raise KeyboardInterrupt
        return runner(job)

    monkeypatch.setattr(run, "run_worker", interrupted)
    out = tmp_path / "out"
    arguments = ["validate", str(model), "--suite", "logits,training", "--out", str(out)]
    assert main(arguments) == 130
    assert "kept in" in capsys.readouterr().err
    assert json.loads((out / "validate.json").read_text())["suites"][0]["suite"] == "logits"


SCRIPT = """
import sys, time
from bitsanywhere.validate import run
from bitsanywhere.cli.__main__ import main
run.peer_installed = lambda: False
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_real_ctrl_c_ends_the_worker_too(model, tmp_path):
    """SIGINT to the whole process group, as a terminal sends it, while a worker is at work."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    stand_in = tmp_path / "worker.py"
    stand_in.write_text(
        "import os, sys, time, pathlib\n"
        "pathlib.Path(os.environ['STARTED']).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    started, out = tmp_path / "started", tmp_path / "out"
    # What runs in the background of a shell without job control is born with SIGINT ignored.
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = heed + SCRIPT.replace(
        "run.peer", f"sys.executable = {str(stand_in.with_suffix(''))!r}\nrun.peer"
    )
    wrapper = stand_in.with_suffix("")
    wrapper.write_text(f"#!/bin/sh\nexec {sys.executable} {stand_in}\n")
    wrapper.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "validate", str(model), "--device", "cpu", "--out", out],
        env=dict(os.environ, STARTED=str(started)),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 60
    while not started.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    worker = int(_when_written(started))
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "Traceback" not in error.split("interrupted")[1]
    assert not Path(f"/proc/{worker}").exists()
    assert list(out.iterdir()) == []


def _when_written(path: Path) -> str:
    while not path.read_text():
        time.sleep(0.01)
    return path.read_text()
