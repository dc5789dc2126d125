"""An 8-bit model in transformers and its adapters; each function is one check of scenario.py."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import tiny
import torch
from model_checks import same
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file
from training_checks import TARGETS, adapter_of, fell, steps

INPUTS = {"input_ids": tiny.batch()["input_ids"]}


def check_int8_kernels_run(here: Any) -> None:
    """Loading and a forward pass go through our ops."""
    from bitsanywhere.ops.registry import OPS

    called, checks = set(), {name: op.check for name, op in OPS.items()}
    for name, op in OPS.items():
        op.check = lambda *args, name=name: (called.add(name), checks[name](*args))[1]
    try:
        tiny.load_8bit(here.float_folder)(**INPUTS)
    finally:
        for name, op in OPS.items():
            op.check = checks[name]
    assert "int8_vectorwise_quant" in called
    assert called & {"int8_linear", "int8_mixed_scaled_mm", "int8_scaled_mm"}


def check_int8_load(here: Any) -> None:
    """All linear layers but the head and those to skip are int8, with the codes we compute."""
    import bitsanywhere

    original = load_file(here.float_folder / "model.safetensors")
    model = tiny.load_8bit(here.float_folder, llm_int8_skip_modules=["lm_head", "o_proj"])
    layers = _layers(model)
    assert len(layers) == 12
    assert not any("o_proj" in name for name in layers)
    for name, layer in layers.items():
        assert isinstance(layer, bnb.nn.Linear8bitLt)
        assert layer.state.threshold == 6.0
        codes, stats, _ = bitsanywhere.functional.int8_vectorwise_quant(
            original[f"{name}.weight"].half()
        )
        assert torch.equal(layer.weight.data, codes)
        assert torch.equal(layer.weight.SCB, stats)


def check_int8_generate(here: Any) -> None:
    """Logits are close to those of the codes' weights, and greedy tokens are their maxima."""
    model = tiny.load_8bit(here.float_folder).eval()
    dense = _dense(here, model)
    with torch.no_grad():
        given, wanted = model(**INPUTS).logits, dense(**INPUTS).logits
    assert tiny.relative_error(given, wanted) < 0.05
    tokens = model.generate(**INPUTS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    length = INPUTS["input_ids"].shape[1]
    assert tokens.shape[1] > length
    assert int(tokens[0, length]) == int(given[0, -1].argmax())


def check_int8_state_dict_keys(here: Any) -> None:
    """An int8 layer has the three keys of the format, before and after a forward."""
    model = tiny.load_8bit(here.float_folder).eval()
    for _ in range(2):
        state = model.state_dict()
        for name, layer in _layers(model).items():
            found = {key.removeprefix(f"{name}.") for key in state if key.startswith(f"{name}.")}
            assert found == {"weight", "SCB", "weight_format"}
            assert state[f"{name}.weight"].dtype == torch.int8
            assert state[f"{name}.SCB"].shape == (layer.out_features,)
            assert state[f"{name}.weight_format"] == 0
        with torch.no_grad():
            model(**INPUTS)


def check_int8_save_and_reload(here: Any) -> None:
    """What is saved loads with the same bits, and computes the same, after a forward too."""
    model = tiny.load_8bit(here.float_folder).eval()
    folder = here.work / "saved_int8"
    with torch.no_grad():
        model(**INPUTS)
    model.save_pretrained(folder)
    other = type(model).from_pretrained(folder, dtype="auto").eval()
    assert len(_layers(other)) == 14
    same(model, other)


def check_int8_deepcopy(here: Any) -> None:
    """A copy computes the same and shares no memory."""
    model = tiny.load_8bit(here.float_folder).eval()
    other = copy.deepcopy(model)
    same(model, other)
    for name, layer in _layers(model).items():
        assert other.get_submodule(name).weight.data_ptr() != layer.weight.data_ptr()


def check_int8_dequantize(here: Any) -> None:
    """``model.dequantize()`` gives the weights that the codes stand for, after a forward too."""
    model = tiny.load_8bit(here.float_folder).eval()
    wanted = _dense(here, model).state_dict()
    with torch.no_grad():
        before = model(**INPUTS).logits
        dense = model.dequantize(torch.bfloat16)
        after = dense(**INPUTS).logits
    assert not _layers(dense)
    for key, value in dense.state_dict().items():
        assert tiny.relative_error(value, wanted[key]) < 0.005, key
    assert tiny.relative_error(after, before) < 0.05


def check_int8_lora_training(here: Any) -> None:
    """The loss falls and the base stays, bit by bit."""
    model = adapter_of(prepare_model_for_kbit_training(tiny.load_8bit(here.float_folder)))
    codes = {name: layer.weight.data.clone() for name, layer in _layers(model).items()}
    assert len(codes) == 14
    fell(steps(model.train()))
    for name, layer in _layers(model).items():
        assert torch.equal(layer.weight.data, codes[name])


def check_int8_merge_before_and_after_eval(here: Any) -> None:
    """Merging is within 8-bit error of base + adapter, the same after an eval forward."""
    merged = []
    for forward_first in (False, True):
        model = _adapted(here)
        wanted = {
            name: _weight(layer.base_layer) + layer.get_delta_weight("default")
            for name, layer in model.named_modules()
            if hasattr(layer, "get_delta_weight")
        }
        assert len(wanted) == 2 * len(TARGETS)
        if forward_first:
            with torch.no_grad():
                model(**INPUTS)
        model = model.merge_and_unload()
        for name, weight in wanted.items():
            layer = model.get_submodule(name.removeprefix("base_model.model."))
            assert tiny.relative_error(_weight(layer), weight) < 0.02, name
        with torch.no_grad():
            merged.append(model(**INPUTS).logits)
    assert torch.equal(*merged)


def check_int8_unmerge(here: Any) -> None:
    """Merging and unmerging an adapter returns to within 8-bit error."""
    model = _adapted(here)
    before = {name: _weight(layer) for name, layer in _layers(model).items()}
    with torch.no_grad():
        model(**INPUTS)
    model.merge_adapter()
    with torch.no_grad():
        model(**INPUTS)
    model.unmerge_adapter()
    for name, layer in _layers(model).items():
        assert tiny.relative_error(_weight(layer), before[name]) < 0.03, name


def check_int8_compile_fullgraph(here: Any) -> None:
    """A model of Linear8bitLt compiles into one graph."""
    torch.manual_seed(1)
    layers = [bnb.nn.Linear8bitLt(k, n, has_fp16_weights=False) for k, n in ((96, 200), (200, 96))]
    model = torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1]).to("cpu").eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 96)
    with torch.no_grad():
        model(x)
        assert tiny.relative_error(compiled(x), model(x)) < 0.02


def _layers(model: Any) -> dict[str, Any]:
    return tiny.linears(model, "Linear8bitLt")


def _weight(layer: Any) -> torch.Tensor:
    """The float32 weight of an int8 layer, whoever holds its statistics."""
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * scales.unsqueeze(1) / 127


def _dense(here: Any, model: Any) -> Any:
    """A new bf16 model of the weights that the codes stand for."""
    from transformers import LlamaForCausalLM

    dense = LlamaForCausalLM.from_pretrained(here.float_folder, dtype="auto")
    for name, layer in _layers(model).items():
        dense.get_submodule(name).weight.data = _weight(layer).to(torch.bfloat16)
    return dense.eval()


def _adapted(here: Any) -> Any:
    """A fresh int8 model with an adapter whose weights do something."""
    model = adapter_of(tiny.load_8bit(here.float_folder))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()
