"""transformers.Trainer with the optimizers, in both ways to use them; see trainer_run.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "trainer_run.py"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["instead", "beside"])
def test_every_name(way, tmp_path):
    """Every run learns, and a resumed one has the losses of the uninterrupted one."""
    needed = ["transformers", "accelerate"] + ["bitsandbytes"] * (way == "beside")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    environment = dict(
        os.environ, CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", BITSANYWHERE_BACKEND="1"
    )
    command = [sys.executable, str(SCRIPT), way, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 15
    package = "bitsanywhere" if way == "instead" else "bitsandbytes"
    for name, run in found.items():
        assert run["class"].startswith(package), name
        assert run["losses"][-1] < run["losses"][0], name
        assert run["resumed"] == run["losses"][3:], name
        assert run["embedding"] == "torch.float32", name
        assert run["linear"] == ("torch.uint8" if "8bit" in name else "torch.float32"), name
