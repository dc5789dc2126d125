"""Linear4bit and Params4bit: numbers, gradients, moving, copying, saving, compiling."""

from __future__ import annotations

import copy
import gc
import io
from functools import partial

import pytest
import torch
from safetensors.torch import load, save

from bitsanywhere import functional as F
from bitsanywhere import matmul_4bit
from bitsanywhere.errors import BitsAnywhereError, CheckpointError, InvalidArgumentError
from bitsanywhere.nn import (
    Embedding4bit,
    Linear4bit,
    Linear8bitLt,
    LinearFP4,
    LinearNF4,
    Params4bit,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def layer(inputs: int = 96, outputs: int = 40, **options) -> Linear4bit:
    torch.manual_seed(0)
    return LinearNF4(inputs, outputs, **options).to("cpu")


def weight64(module: Linear4bit) -> torch.Tensor:
    state = module.weight.quant_state
    float32_state = copy.copy(state)
    float32_state.dtype = torch.float32
    return F.dequantize_4bit(module.weight.data, float32_state).double()


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 96), (5, 96), (2, 33, 96), (96,), (0, 96)])
def test_forward_and_gradients_against_float64(shape, dtype, compress, bias, cpu_implementation):
    module = layer(bias=bias, compute_dtype=dtype, compress_statistics=compress)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    out = module(x)
    weight = weight64(module)
    expected = x.detach().double() @ weight.t()
    if bias:
        expected = expected + module.bias.detach().to(dtype).double()
    assert out.shape == (*shape[:-1], 40)
    assert out.dtype == dtype
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    out.backward(seed)
    if x.numel():
        assert relative_error(out.detach(), expected) < TOLERANCE[dtype]
        assert relative_error(x.grad, seed.double() @ weight) < TOLERANCE[dtype]
    assert module.weight.grad is None
    if bias:
        expected_bias = seed.double().reshape(-1, 40).sum(0)
        assert torch.allclose(module.bias.grad.double(), expected_bias, rtol=0.02, atol=0.02)


def test_training_and_eval_agree_and_leave_the_weight_alone(cpu_implementation):
    module = layer(256, 512, compute_dtype=torch.bfloat16)
    codes = module.weight.data.clone()
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    train = module.train()(x.clone().requires_grad_())
    with torch.no_grad():
        evaluated = module.eval()(x)
    assert relative_error(evaluated, train.detach().double()) < 1e-2
    assert torch.equal(module.weight.data, codes)
    assert module.weight.shape == (256 * 512 // 2, 1)


def test_float16_inputs_compute_in_float16():
    module = layer(bias=False)
    x = torch.randn(4, 96, dtype=torch.float16)
    expected = matmul_4bit(x, module.weight.data, module.weight.quant_state)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_has_the_input_dtype(dtype, compute_dtype):
    module = layer(compute_dtype=compute_dtype)
    assert module(torch.randn(2, 96, dtype=dtype)).dtype == dtype


def test_compute_dtype_follows_the_first_input():
    module = layer()
    module(torch.randn(2, 96, dtype=torch.bfloat16))
    assert module.compute_dtype == torch.bfloat16


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("compress", [False, True])
def test_state_dict_roundtrip(storage, compress):
    module = layer(quant_storage=storage, compress_statistics=compress)
    stored = load(save(module.state_dict()))
    fresh = LinearNF4(96, 40, quant_storage=storage)
    assert fresh.load_state_dict(stored) == ([], [])
    on_meta = LinearNF4(96, 40, device="meta")
    on_meta.load_state_dict(stored, assign=True)
    x = torch.randn(4, 96)
    for loaded in (fresh, on_meta):
        assert loaded.weight.dtype == storage
        assert torch.equal(loaded.weight.view(torch.uint8), module.weight.view(torch.uint8))
        assert loaded.weight.quant_state == module.weight.quant_state
        assert loaded.weight.module is loaded
        assert torch.equal(loaded(x), module(x))
        again = loaded.state_dict()
        assert list(again) == list(module.state_dict())


def test_state_dict_of_a_model_and_float_weights_still_load():
    model = torch.nn.Sequential(LinearNF4(64, 64), torch.nn.ReLU(), LinearFP4(64, 8)).to("cpu")
    fresh = torch.nn.Sequential(LinearNF4(64, 64), torch.nn.ReLU(), LinearFP4(64, 8))
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(4, 64)
    assert torch.equal(fresh(x), model(x))
    plain = torch.nn.Linear(64, 8)
    target = LinearFP4(64, 8)
    target.load_state_dict(plain.state_dict())
    assert torch.equal(target.weight.data, plain.weight.data)


def test_loading_copies_and_keeps_ties():
    stored = layer().state_dict()
    model = torch.nn.ModuleList([layer(), layer()])
    model[1].weight = model[0].weight
    both = {f"{i}.{key}": value for i in (0, 1) for key, value in stored.items()}
    model.load_state_dict(both)
    assert model[0].weight is model[1].weight
    x = torch.randn(2, 96)
    expected = model[0](x).clone()
    for value in stored.values():
        value.zero_()
    assert torch.equal(model[0](x), expected)


def test_codes_without_statistics_are_refused():
    stored = layer().state_dict()
    partial = {key: stored[key] for key in ("weight", "bias")}
    with pytest.raises(CheckpointError, match="weight comes without"):
        layer().load_state_dict(partial)


def test_a_fault_in_a_model_names_its_layer():
    model = torch.nn.Sequential(layer(), torch.nn.ReLU())
    stored = model.state_dict()
    stored["0.weight.absmax"] = stored["0.weight.absmax"][:-1]
    with pytest.raises(CheckpointError, match=r"0\.weight: absmax has 59"):
        model.load_state_dict(stored)


@pytest.mark.parametrize("cast", ["half", "float", "bfloat16", "double"])
def test_casting_a_model_leaves_codes_in_float_storage_alone(cast):
    model = torch.nn.Sequential(layer(quant_storage=torch.bfloat16))
    codes = model[0].weight.data.view(torch.uint8).clone()
    getattr(model, cast)()
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].weight.data.view(torch.uint8), codes)


def test_loading_another_shape_is_refused_and_changes_nothing():
    stored = layer(64, 32).state_dict()
    target = layer(32, 64)
    codes = target.weight.data.clone()
    with pytest.raises(CheckpointError, match=r"\(32, 64\).*\n.*\(64, 32\)"):
        target.load_state_dict(stored)
    assert torch.equal(target.weight.data, codes)


def test_params_move_and_quantize():
    param = Params4bit(torch.randn(8, 64), quant_type="nf4")
    on_meta = Params4bit(torch.empty(8, 64, device="meta"), quant_type="nf4")
    assert on_meta.to("meta").shape == (8, 64)
    assert not param.bnb_quantized
    param = param.to("cpu")
    assert param.bnb_quantized
    assert param.dtype == torch.uint8
    assert param.to(torch.float32).dtype == torch.uint8, "a dtype must not destroy codes"
    assert param.to("cpu") is param
    with torch.device("meta"):
        module = LinearNF4(64, 8)
    assert module.weight.is_meta
    assert module.to("meta").weight.is_meta


@pytest.mark.parametrize("quantized", [False, True])
def test_a_model_moves_to_meta_and_is_loaded_again(quantized):
    made = [LinearNF4(64, 8), Embedding4bit(8, 64)]
    model = torch.nn.Sequential(*(module.to("cpu") if quantized else module for module in made))
    stored = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.to("meta") is model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert [type(module.weight) for module in model] == [Params4bit, Params4bit]
    assert model.to("meta")[0].weight.bnb_quantized is quantized
    if quantized:
        model.load_state_dict(stored, assign=True)
        again = model.to("cpu").state_dict()
        assert all(torch.equal(again[key], value) for key, value in stored.items())


def test_params_accept_their_own_dict_and_unknown_extras():
    param = layer().weight
    again = Params4bit(param.data, requires_grad=False, **param.__dict__, _is_hf_initialized=True)
    assert again.quant_state is param.quant_state
    assert not hasattr(again, "_is_hf_initialized")


@pytest.mark.parametrize("compress", [False, True])
def test_statistics_are_attributes(compress):
    param = layer(compress_statistics=compress).weight
    state = param.quant_state
    assert param.absmax is state.absmax
    assert param.code is param.quant_map
    assert hasattr(param, "nested_absmax") == compress
    assert hasattr(Params4bit(torch.zeros(1, 64)), "absmax") is False
    if compress:
        assert param.nested_blocksize == 256
        assert param.nested_offset is state.offset
    key = "bitsandbytes__nf4"
    assert torch.equal(getattr(state, key), state.as_dict(packed=True)[f"quant_state.{key}"])


def test_chunk_and_split_stay_parameters():
    param = layer(64, 64).weight
    for pieces in (torch.chunk(param, 4), torch.split(param, 512)):
        assert [type(piece) for piece in pieces] == [Params4bit] * 4
        assert all(piece.quant_state is param.quant_state for piece in pieces)
        assert torch.equal(torch.cat([piece.data for piece in pieces]), param.data)


@pytest.mark.parametrize("make", [Linear4bit, partial(Linear8bitLt, has_fp16_weights=False)])
def test_layers_made_without_memory_get_parameters_of_their_kind(make):
    """As transformers makes them; accelerate leaves a requires_grad in a parameter's __dict__."""
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        empty = make(64, 32)
    assert empty.weight.is_meta
    assert type(empty.weight) is type(make(64, 32).weight)
    assert not empty.weight.requires_grad


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_independent_and_equal(how):
    model = torch.nn.Sequential(layer())
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    x = torch.randn(2, 96)
    expected = model(x)
    assert torch.equal(twin(x), expected)
    assert twin[0].weight.module is twin[0]
    assert twin[0].weight.quant_state is not model[0].weight.quant_state
    model[0].weight.data.zero_()
    assert torch.equal(twin(x), expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("compress", [False, True])
def test_compile_fullgraph(compress, dynamic):
    torch._dynamo.reset()
    model = torch.nn.Sequential(
        LinearNF4(64, 128, compress_statistics=compress, compute_dtype=torch.float32),
        torch.nn.GELU(),
        LinearFP4(128, 32, compress_statistics=compress, compute_dtype=torch.float32),
    ).to("cpu")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 7):
        x = torch.randn(rows, 64)
        with torch.no_grad():
            assert torch.allclose(compiled(x), model(x), atol=1e-5)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(ours).square().sum().backward()
        model(theirs).square().sum().backward()
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_compile_with_inductor():
    torch._dynamo.reset()
    model = torch.nn.Sequential(LinearNF4(64, 64), torch.nn.ReLU(), LinearNF4(64, 8)).to("cpu")
    x = torch.randn(5, 64)
    assert torch.allclose(torch.compile(model, fullgraph=True)(x), model(x), atol=1e-5)


@pytest.mark.parametrize("op", ["gemm_4bit", "quantize_4bit", "dequantize_4bit"])
def test_opcheck(op):
    module = layer(64, 8)
    state = module.weight.quant_state
    arguments = {
        "gemm_4bit": (
            torch.randn(3, 64), module.weight.data, [8, 64], state.unnested_absmax(), 64, "nf4",
        ),
        "quantize_4bit": (torch.randn(3, 65), 64, "nf4", torch.uint8),
        "dequantize_4bit": (
            module.weight.data, state.unnested_absmax(), 64, "nf4", [8, 64], torch.bfloat16,
        ),
    }[op]  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.bitsanywhere, op).default, arguments, test_utils=tests)


def test_forward_before_quantization_says_what_to_do():
    with pytest.raises(InvalidArgumentError, match=r'layer\.to\("cuda"\)'):
        LinearNF4(64, 8)(torch.randn(1, 64))


def test_state_survives_a_framework_that_replaces_the_parameter():
    module = layer()
    x = torch.randn(2, 96)
    expected = module(x)
    module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
    assert torch.equal(module(x), expected)
    assert isinstance(module.weight, Params4bit)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (torch.randn(2, 95), "A is"),
        (torch.randn(2, 96, device="meta"), "device|meta"),
    ],
)
def test_wrong_inputs(inputs, says):
    with pytest.raises(BitsAnywhereError, match=says):
        layer()(inputs)


def test_matmul_4bit_refuses():
    module = layer()
    x, codes, state = torch.randn(2, 96), module.weight.data, module.weight.quant_state
    with pytest.raises(InvalidArgumentError, match="quant_state is None"):
        matmul_4bit(x, codes, None)
    with pytest.raises(BitsAnywhereError, match="int64"):
        matmul_4bit(torch.zeros(2, 96, dtype=torch.int64), codes, state)
    with pytest.raises(BitsAnywhereError, match="bias has 3"):
        matmul_4bit(x, codes, state, bias=torch.zeros(3))
    with pytest.raises(BitsAnywhereError, match="go together"):
        torch.ops.bitsanywhere.gemm_4bit(
            x, codes, [40, 96], state.state2.absmax, 64, "nf4", None, state.absmax
        )


def test_no_float_copy_of_the_weight_survives():
    module = LinearNF4(512, 512)
    module.to("cpu")
    gc.collect()
    alive = [
        x for x in gc.get_objects()
        if type(x) in (torch.Tensor, torch.nn.Parameter) and x.numel() == 512 * 512
    ]  # fmt: skip
    assert alive == []
