"""Models and options that are refused, each with what is wrong; and small decisions."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch

pytest.importorskip("transformers")

from bitsanywhere.convert.hf_model import decide
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.sources import Stored, open_source
from bitsanywhere.errors import (
    BitsAnywhereError,
    CheckpointError,
    InvalidArgumentError,
    MissingPackageError,
)
from tests.convert.models import CASES, save


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """config.json and tensors of a small Llama."""
    source = open_source(save(CASES["llama"], tmp_path_factory.mktemp("llama") / "llama"))
    return source.config(), source.tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"compression_config": {"x": 1}}, "quantized already"),
        ({"architectures": ["MyLlamaForCausalLM"]}, "'MyLlamaForCausalLM'"),
        ({"architectures": ["AutoModel"]}, "AutoModel"),
        ({"architectures": ["__builtins__"]}, "__builtins__"),
        ({"architectures": None}, "None"),
        ({"architectures": [["a"]]}, "a"),
        ({"architectures": "LlamaForCausalLM"}, "LlamaForCausalLM"),
        ({"model_type": "my_llama"}, "my_llama"),
        ({"model_type": ["llama"]}, "llama"),
        ({"hidden_size": "wide"}, "cannot make a LlamaForCausalLM"),
        ({"dtype": "float64"}, "dtype is torch.float64"),
        ({"dtype": "os"}, "cannot make"),
        ({"hidden_size": 64}, "the model wants"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors"),
    ],
)
def test_models_that_cannot_be_converted(llama, changes, message):
    config, tensors = llama
    with pytest.raises(CheckpointError, match=message):
        decide(config | changes, tensors, Options())


def test_code_of_a_checkpoint_is_neither_run_nor_named(llama):
    config, tensors = llama
    changed = config | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    made = decide(changed, tensors, Options()).config.to_dict()
    assert "auto_map" not in made
    assert made["architectures"] == ["LlamaForCausalLM"]


def test_layers_that_the_model_has_no_place_for_are_named(llama):
    config, tensors = llama
    decisions = decide(config | {"num_hidden_layers": 1}, tensors, Options())
    assert len(decisions.unused) == 9
    assert all(name.startswith("model.layers.1.") for name in decisions.unused)
    assert not set(decisions.unused) & {job.name for job in decisions.jobs}


def test_integers_are_no_weights(llama):
    config, tensors = llama
    name = "model.layers.0.mlp.up_proj.weight"
    changed = tensors | {name: Stored(tensors[name].shape, torch.int8, tensors[name].file_bytes)}
    with pytest.raises(CheckpointError, match=r"is torch\.int8, the model wants torch\.bfloat16"):
        decide(config, changed, Options())


def test_a_checkpoint_without_a_dtype_keeps_that_of_its_tensors(llama):
    config, tensors = llama
    config = {key: value for key, value in config.items() if key != "dtype"}
    tensors = {n: Stored(t.shape, torch.float16, t.file_bytes) for n, t in tensors.items()}
    assert {job.dtype for job in decide(config, tensors, Options()).jobs} == {torch.float16}


@pytest.mark.parametrize(
    "name", ["head", "model.layer", "q_proj.weight", "lm_head2", "(", "layers.7"]
)
def test_a_skip_that_fits_nothing_is_refused(llama, name):
    # "head" is the end of "lm_head", so that one fits.
    if name == "head":
        decide(*llama, Options(skip=(name,)))
        return
    with pytest.raises(InvalidArgumentError, match="--skip"):
        decide(*llama, Options(skip=(name,)))


def test_a_model_without_linear_layers_to_quantize_is_refused(llama):
    with pytest.raises(CheckpointError, match="no linear layer"):
        decide(*llama, Options(skip=("proj",)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"quant_type": "int4"},
        {"device": "tpu"},
        {"compute_dtype": "float64"},
        {"quant_type": "int8", "double_quant": True},
        {"quant_type": "int8", "compute_dtype": "float16"},
    ],
)
def test_options_that_are_not_allowed(arguments):
    with pytest.raises(InvalidArgumentError):
        Options(**arguments)


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BitsAnywhereError, match="no CUDA GPU"):
        Options(device="cuda")


def test_without_transformers_the_pip_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "bitsanywhere.convert.hf_model")
    with pytest.raises(MissingPackageError, match="pip install -U 'transformers>=5'"):
        importlib.import_module("bitsanywhere.convert.hf_model")


def test_layers_that_transformers_would_load_elsewhere_are_refused(llama, monkeypatch):
    from bitsanywhere.convert import hf_model

    patch = hf_model.MODULES_TO_PATCH_FOR_QUANTIZATION["Llama4TextExperts"]
    monkeypatch.setitem(hf_model.MODULES_TO_PATCH_FOR_QUANTIZATION, "LlamaMLP", patch)
    with pytest.raises(CheckpointError, match="has LlamaMLP"):
        decide(*llama, Options())


def test_quantization_config_is_what_transformers_reads_back():
    from transformers import BitsAndBytesConfig

    written = Options("fp4", True, "float16").quantization_config(torch.bfloat16, ["lm_head"])
    pytest.importorskip("bitsandbytes")
    back = BitsAndBytesConfig.from_dict(json.loads(json.dumps(written)))
    assert back.to_dict() == written
