"""What bitsandbytes 0.50.2 writes, we read bit by bit, and the reverse; see exchange.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "exchange.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("safetensors")
    from importlib.util import find_spec

    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    work = tmp_path_factory.mktemp("exchange")
    environment = dict(os.environ, BITSANYWHERE_BACKEND="0", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(
        [sys.executable, SCRIPT, work], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((work / "results.json").read_text())


@pytest.mark.parametrize("storage", ["uint8", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("statistics", ["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("reader", ["bitsandbytes", "bitsanywhere"])
def test_reads_what_the_other_wrote(results, reader, quant_type, statistics, storage):
    assert results[f"{reader} {quant_type} {statistics} {storage}"] == "ok"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("reader", ["bitsandbytes", "bitsanywhere"])
def test_reads_int8_that_the_other_wrote(results, reader, dtype):
    assert results[f"{reader} int8 {dtype}"] == "ok"


@pytest.mark.parametrize("weights", ["int8", "float"])
def test_int8_training_steps_are_theirs(results, weights):
    """Outputs and gradients of a Linear8bitLt in training mode, to 1e-5."""
    assert results[f"training {weights}"] == "ok"
