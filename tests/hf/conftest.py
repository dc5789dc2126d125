"""Both ways to use the library run once, side by side, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

SCENARIO = Path(__file__).parent / "scenario.py"
NEEDED = ("transformers", "peft", "trl", "accelerate", "datasets", "tokenizers")


@dataclass(frozen=True)
class Outcome:
    """What one way's process left: results by check, the folder it saved to, why it died if so."""

    results: dict[str, str]
    saved: Path
    output: str


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcome of each way that can run here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    ways = ["instead"] if find_spec("bitsandbytes") is None else ["instead", "beside"]
    environment = dict(
        os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1",
        BITSANYWHERE_BACKEND="1", TOKENIZERS_PARALLELISM="false",
    )  # fmt: skip
    started = {}
    for way in ways:
        folder = tmp_path_factory.mktemp(way)
        log = (folder / "log.txt").open("wb")
        command = [sys.executable, str(SCENARIO), way, str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        started[way] = (process, folder)
    return {way: _finish(*run) for way, run in started.items()}


def _finish(process: subprocess.Popen[bytes], folder: Path) -> Outcome:
    process.wait(timeout=600)
    output = (folder / "log.txt").read_text(errors="replace")[-4000:]
    results = folder / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    return Outcome(found, folder / "saved", output)
