"""Models of real size: SmolLM2-135M from GGUF and from a folder; the memory of a large layer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize
from bitsanywhere.convert.work import work_folder

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
FORMATS = {
    "nf4": (Options(double_quant=True), ["--double-quant"]),
    "int8": (Options("int8"), ["--quant-type", "int8"]),
}


@pytest.fixture(scope="module")
def gguf() -> Path:
    pytest.importorskip("gguf")
    from examples.qlora.errors import DemoError
    from examples.qlora.gguf_to_hf import find_gguf

    try:
        return find_gguf()
    except DemoError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def work(gguf, tmp_path_factory):
    """X/source and X/ours for each format, of the bf16 folder, as stock.py wants them."""
    from examples.qlora.gguf_to_hf import convert

    work = tmp_path_factory.mktemp("smollm2")
    for name, (options, _) in FORMATS.items():
        source = convert(gguf, work / name / "source")
        quantize(source, work / name / "ours", options)
    return work


@pytest.mark.parametrize("name", FORMATS)
def test_gguf_and_folder_give_the_same_bytes(gguf, work, tmp_path, name):
    quantize(gguf, tmp_path / "made", FORMATS[name][0])
    given, wanted = tmp_path / "made", work / name / "ours"
    for file in ("model.safetensors", "tokenizer.json"):
        assert (given / file).read_bytes() == (wanted / file).read_bytes(), file


def test_it_is_what_transformers_writes_and_loads_with_bitsandbytes(work):
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    environment = dict(os.environ, BITSANYWHERE_BACKEND="0", CUDA_VISIBLE_DEVICES="")
    command = [sys.executable, HERE / "stock.py", "bitsandbytes", work]
    subprocess.run(command, env=environment, check=True, timeout=900)
    for name in FORMATS:
        given = load_file(work / name / "ours" / "model.safetensors")
        wanted = load_file(work / name / "stock" / "model.safetensors")
        assert given.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(
                given[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            ), key
        logits = torch.load(work / name / "logits_bitsandbytes.pt")
        assert torch.equal(logits, torch.load(work / name / "logits_quantized_at_load.pt"))


def test_killed_from_outside_at_three_random_moments(work, tmp_path):
    command = [sys.executable, "-m", "bitsanywhere", "quantize", work / "nf4" / "source"]
    command += [tmp_path / "made", *FORMATS["nf4"][1]]
    journal = work_folder(tmp_path / "made") / "journal"
    for _ in range(3):
        # Not before work has begun, so that it is work that is killed.
        before = journal.stat().st_mtime_ns if journal.exists() else 0
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and (
            not journal.exists() or journal.stat().st_mtime_ns == before
        ):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        if process.wait(timeout=60) == 0:
            break
    if not (tmp_path / "made").exists():
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert "finished by an earlier run" in done.stdout, done.stderr
    for file in (work / "nf4" / "ours").iterdir():
        assert (tmp_path / "made" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_memory_stays_below_the_largest_tensor(tmp_path, quant_type):
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000, tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    config.to_json_file(source / "config.json")
    sizes = {"embed_tokens": (32000, 4096), "norm": (4096,)}
    layer = {
        "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096), "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336), "input_layernorm": (4096,),
        "post_attention_layernorm": (4096,),
    }  # fmt: skip
    sizes |= {f"layers.0.{name}": size for name, size in layer.items()}
    weights = {
        f"model.{name}.weight": torch.rand(size, dtype=torch.bfloat16) - 0.5
        for name, size in sizes.items()
    }
    largest = max(weight.nbytes for weight in weights.values())
    save_file(weights, source / "model.safetensors")
    del weights
    done = subprocess.run(
        [sys.executable, HERE / "memory.py", source, tmp_path / "made", quant_type],
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=""),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout.split()[-1])
    print(f"{quant_type}: {grown / 1e6:.0f} MB for a largest tensor of {largest / 1e6:.0f} MB")
    assert grown < largest
