"""`quantize --device cuda`: codes as on the CPU, statistics within their rounding; it loads."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize
from tests.convert.models import CASES, save


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save(CASES["llama_odd"], tmp_path_factory.mktemp("source") / "llama")


@pytest.mark.parametrize(
    ("quant_type", "double"), [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)]
)
def test_the_gpu_writes_what_the_cpu_writes(source, tmp_path, quant_type, double):
    made = {}
    for device in ("cpu", "cuda"):
        quantize(source, tmp_path / device, Options(quant_type, double, device=device))
        made[device] = load_file(tmp_path / device / "model.safetensors")
    assert made["cpu"].keys() == made["cuda"].keys()
    for key, wanted in made["cpu"].items():
        given = made["cuda"][key]
        assert given.dtype == wanted.dtype, key
        if not double or not key.endswith(("absmax", "bitsandbytes__nf4")):
            assert torch.equal(given, wanted), key
        elif key.endswith("nested_absmax"):
            # The mean that was taken off is summed in another order.
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=0)
        elif key.endswith("absmax"):
            assert (given.int() - wanted.int()).abs().max() <= 1, key


def test_the_result_loads_on_the_gpu(source, tmp_path):
    import transformers

    pytest.importorskip("bitsandbytes")
    quantize(source, tmp_path / "made", Options(double_quant=True, device="cuda"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", device_map={"": "cuda"}, dtype="auto"
    )
    with torch.no_grad():
        assert model(torch.arange(24, device="cuda")[None]).logits.isfinite().all()
