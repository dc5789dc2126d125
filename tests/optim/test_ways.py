"""The optimizers in place of bitsandbytes', and our kernels under those of an installed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "ways.py"


@pytest.mark.parametrize("way", ["instead", "beside"])
def test_way(way):
    """Beside, too, the very kernels run that we run, so the results are equal bit for bit."""
    if way == "beside" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    environment = dict(os.environ, BITSANYWHERE_BACKEND="1", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), way], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    package = {"instead": "bitsanywhere", "beside": "bitsandbytes"}[way]
    assert found["module"] == f"{package}.optim.adamw"
    limited = found["distance"].pop("LAMB32bit")
    assert set(found["distance"].values()) == {0.0}
    # Each library takes the parameter's norm in its own way.
    assert limited <= 1e-6
