"""Way 2 on a GPU: stock bitsandbytes 0.50.2 runs its ops on our kernels, and results agree."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

SCRIPT = """
import json, os, sys, torch
from safetensors.torch import save_file
import bitsandbytes as bnb
F = bnb.functional
torch.manual_seed(0)
out = {}
served = []
if os.environ["BITSANYWHERE_BACKEND"] == "1":
    from bitsanywhere.ops import registry
    kernels, problem = registry.load_backend("cuda")
    assert problem is None, problem
    counted = {}
    for name, kernel in kernels.items():
        def run(*args, _name=name, _run=kernel.run, **kwargs):
            served.append(_name)
            return _run(*args, **kwargs)
        counted[name] = registry.Kernel(run, kernel.why_not)
    from bitsanywhere.integrations import bitsandbytes_backend
    registry.load_backend = bitsandbytes_backend.load_backend = lambda device: (counted, None)
weight = torch.randn(512, 768, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
weight = weight.cuda()
for quant_type in ("nf4", "fp4"):
    for nested in (False, True):
        codes, state = F.quantize_4bit(weight, quant_type=quant_type, compress_statistics=nested)
        key = f"{quant_type} {nested}"
        out[key] = {"codes": codes, "restored": F.dequantize_4bit(codes, state)}
        state.dtype = torch.float32
        exact = F.dequantize_4bit(codes, state).double()
        state.dtype = torch.bfloat16
        for m in (1, 5, 40, 300):
            x = torch.randn(m, 768, generator=torch.Generator().manual_seed(m)).bfloat16().cuda()
            out[key][f"matmul {m}"] = bnb.matmul_4bit(x, codes.t(), quant_state=state)
            out[key][f"exact {m}"] = x.double() @ exact.t()
codes, state = F.quantize_blockwise(weight, blocksize=256)
out["8bit"] = {"codes": codes, "restored": F.dequantize_blockwise(codes, state)}
save_file({f"{k}/{part}": v.contiguous() for k, d in out.items() for part, v in d.items()},
          sys.argv[1])
print("SERVED " + json.dumps(sorted(set(served))))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    folder = tmp_path_factory.mktemp("way2")
    results, served = {}, {}
    for switch in ("0", "1"):
        path = folder / f"{switch}.safetensors"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "BITSANYWHERE_BACKEND": switch},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results[switch] = load_file(path)
        served[switch] = json.loads(done.stdout.split("SERVED ")[1])
    return results, served


def test_our_kernels_served(runs):
    _, served = runs
    assert served["0"] == []
    assert {
        "quantize_4bit", "dequantize_4bit", "quantize_blockwise", "dequantize_blockwise",
        "gemm_4bit",
    } <= set(served["1"])  # fmt: skip


def gap(got, expected) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def test_codecs_agree(runs):
    """Exactly but for ties: stock rounds them up on GPUs, and down on CPUs, as we do everywhere.

    NF4's thresholds are never met by a quotient of two bfloat16; FP4's are by half a percent (in
    codes; 1.1e-2 of the restored values' norm).
    """
    results, _ = runs
    assert results["0"].keys() == results["1"].keys()
    for key, stock in results["0"].items():
        ours = results["1"][key]
        if key.endswith("/codes"):
            differing = (stock != ours).float().mean().item()
            assert differing < {"8": 3e-3, "f": 3e-2, "n": 1e-4}[key[0]], (key, differing)
        elif key.endswith("/restored"):
            assert gap(ours, stock) < (2e-2 if key.startswith("fp4") else 1e-2), key


def test_products_are_at_least_as_exact(runs):
    results, _ = runs
    products = [key for key in results["0"] if "matmul" in key]
    assert len(products) == 16
    for key in products:
        errors = [
            gap(results[switch][key], results[switch][key.replace("matmul", "exact")])
            for switch in "01"
        ]
        # Stock's own products differ from the exact one by up to 1.5e-2 at M = 1.
        assert errors[0] < 3e-2, (key, errors)
        assert errors[1] < 5e-3, (key, errors)
        assert errors[1] < 1.2 * errors[0], (key, errors)
