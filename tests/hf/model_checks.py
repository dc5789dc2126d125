"""What a 4-bit model in transformers must do; each function is one check, run by scenario.py."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import tiny
import torch
from safetensors.torch import load_file

STATE_KEYS = {
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4",
}


def check_libraries_find_it(here: Any) -> None:
    """Every library decides that bitsandbytes is there, from module and metadata."""
    from accelerate.utils import is_4bit_bnb_available, is_bitsandbytes_multi_backend_available
    from peft.import_utils import is_bnb_4bit_available
    from transformers.utils import is_bitsandbytes_available

    assert is_bitsandbytes_available()
    assert is_4bit_bnb_available()
    assert is_bitsandbytes_multi_backend_available()
    assert is_bnb_4bit_available()


def check_our_kernels_run(here: Any) -> None:
    """Loading and a forward pass go through our ops."""
    from bitsanywhere.ops.registry import OPS

    called, checks = set(), {name: op.check for name, op in OPS.items()}
    for name, op in OPS.items():
        op.check = lambda *args, name=name: (called.add(name), checks[name](*args))[1]
    try:
        model = tiny.load_4bit(here.float_folder)
        model(**tiny.batch())
    finally:
        for name, op in OPS.items():
            op.check = checks[name]
    assert {"quantize_4bit", "gemm_4bit"} <= called
    # Ours nests statistics in an op of its own, bitsandbytes by quantize_blockwise.
    assert called & {"nest_absmax", "quantize_blockwise"}


def check_load(here: Any) -> None:
    """All linear layers but the head are 4-bit, with the codes that our library computes."""
    import bitsanywhere

    original = load_file(here.float_folder / "model.safetensors")
    layers = tiny.linears(here.model)
    assert len(layers) == 14
    for name, layer in layers.items():
        assert isinstance(layer, bnb.nn.Linear4bit)
        weight = layer.weight
        assert weight.dtype == torch.uint8
        assert weight.shape == (layer.in_features * layer.out_features // 2, 1)
        assert weight.quant_state.nested
        codes, state = bitsanywhere.functional.quantize_nf4(
            original[f"{name}.weight"], compress_statistics=True
        )
        assert torch.equal(weight.data, codes)
        assert torch.equal(weight.quant_state.absmax, state.absmax)
        assert torch.equal(weight.quant_state.state2.absmax, state.state2.absmax)


def check_generate(here: Any) -> None:
    """Logits are those of the dequantized weights, and greedy tokens are their maxima."""
    inputs = {"input_ids": tiny.batch()["input_ids"]}
    dense = here.dense()
    with torch.no_grad():
        given, wanted = here.model(**inputs).logits, dense(**inputs).logits
    assert tiny.relative_error(given, wanted) < 0.02
    tokens = here.model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert tokens.shape[1] > inputs["input_ids"].shape[1]
    assert int(tokens[0, inputs["input_ids"].shape[1]]) == int(given[0, -1].argmax())


def check_weights_stay_after_eval(here: Any) -> None:
    """An eval forward leaves codes and statistics as a checkpoint holds them."""
    model = tiny.load_4bit(here.float_folder).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(**tiny.batch())
    for name, layer in tiny.linears(model).items():
        assert torch.equal(layer.weight.data, before[f"{name}.weight"])
        assert torch.equal(layer.weight.quant_state.absmax, before[f"{name}.weight.absmax"])


def check_state_dict_keys(here: Any) -> None:
    """A 4-bit layer has the six keys of the format, others just a weight."""
    keys = set(here.model.state_dict())
    for name in tiny.linears(here.model):
        found = {key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")}
        assert found == STATE_KEYS
    assert {key for key in keys if "lm_head" in key} == {"lm_head.weight"}


def check_save_and_reload(here: Any) -> None:
    """What is saved loads with the same bits, and computes the same."""
    here.model.save_pretrained(here.saved_folder)
    same(here.model, type(here.model).from_pretrained(here.saved_folder, dtype="auto"))


def check_quant_storage_bfloat16(here: Any) -> None:
    """Codes stored as bfloat16 are the same bytes, and save and reload keeps them."""
    model = tiny.load_4bit(here.float_folder, bnb_4bit_quant_storage=torch.bfloat16)
    for name, layer in tiny.linears(model).items():
        assert layer.weight.dtype == torch.bfloat16
        given = layer.weight.data.view(torch.uint8)
        assert torch.equal(given, here.model.get_submodule(name).weight.data.view(-1, 2))
    inputs = {"input_ids": tiny.batch()["input_ids"]}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, here.model(**inputs).logits)
    folder = here.work / "saved_bf16"
    model.save_pretrained(folder)
    same(model, type(model).from_pretrained(folder, dtype=torch.bfloat16))


def check_deepcopy(here: Any) -> None:
    """A copy computes the same and shares no memory, statistics included."""
    other = copy.deepcopy(here.model)
    same(here.model, other)
    for name, layer in tiny.linears(here.model).items():
        twin = other.get_submodule(name)
        assert twin.weight.data_ptr() != layer.weight.data_ptr()
        assert twin.weight.quant_state is not layer.weight.quant_state
        assert (
            twin.weight.quant_state.absmax.data_ptr() != layer.weight.quant_state.absmax.data_ptr()
        )


def check_dequantize_after_eval(here: Any) -> None:
    """``model.dequantize()`` gives the weights that the model computed with."""
    model = tiny.load_4bit(here.float_folder).eval()
    inputs = {"input_ids": tiny.batch()["input_ids"]}
    wanted = here.dense().state_dict()
    with torch.no_grad():
        before = model(**inputs).logits
        dense = model.dequantize()
        after = dense(**inputs).logits
    assert not tiny.linears(dense)
    for key, value in dense.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    assert tiny.relative_error(after, before) < 0.02


def check_compile_fullgraph(here: Any) -> None:
    """A model of Linear4bit compiles into one graph, forward and backward."""
    torch.manual_seed(1)
    layers = [
        bnb.nn.Linear4bit(k, n, compute_dtype=torch.bfloat16, quant_type="nf4")
        for k, n in ((96, 200), (200, 96))
    ]
    for layer in layers:
        layer.bias.data = layer.bias.data.bfloat16()
    model = torch.nn.Sequential(layers[0], torch.nn.GELU(), layers[1]).to("cpu")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 96, dtype=torch.bfloat16)
    with torch.no_grad():
        assert tiny.relative_error(compiled(x), model(x)) < 0.01
    gradients = []
    for function in (model, compiled):
        leaf = x.clone().requires_grad_()
        function(leaf).float().square().sum().backward()
        gradients.append(leaf.grad)
    assert tiny.relative_error(gradients[1], gradients[0]) < 0.01


def same(first: Any, second: Any) -> None:
    """Two models have the same state_dict, bit by bit, and the same logits."""
    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert value.dtype == two[key].dtype, key
        assert torch.equal(value.view(torch.uint8), two[key].view(torch.uint8)), key
    inputs = {"input_ids": tiny.batch()["input_ids"]}
    with torch.no_grad():
        assert torch.equal(first(**inputs).logits, second(**inputs).logits)
