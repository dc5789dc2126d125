"""Linear8bitLt and Int8Params: numbers, gradients, moving, copying, compiling."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import bitsanywhere as bnb
from bitsanywhere import functional as F
from bitsanywhere.autograd import MatMul8bitFp, MatMul8bitLt, MatmulLtState, matmul
from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.nn import Int8Params, Linear8bitLt

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
N, K = 40, 96


def layer(inputs: int = K, outputs: int = N, threshold=6.0, **options) -> Linear8bitLt:
    torch.manual_seed(0)
    options = {"has_fp16_weights": False} | options
    return Linear8bitLt(inputs, outputs, threshold=threshold, **options)


def inputs(shape=(5, K), dtype=torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-4, 4)
    if x.numel():
        x.view(-1, shape[-1])[0, 3] = 8.5
    return x.to(dtype)


def weight64(module: Linear8bitLt) -> torch.Tensor:
    return module.weight.data.double() * module.weight.SCB.double().unsqueeze(1) / 127


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def quantized64(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """What the int8 product sees of its input."""
    codes, stats, columns = F.int8_vectorwise_quant(x, threshold)
    seen = codes.double() * stats.double().view(*x.shape[:-1], 1) / 127
    if columns is not None:
        seen[..., columns] = x.double()[..., columns]
    return seen


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, K), (5, K), (2, 33, K), (K,), (0, K)])
def test_forward_and_gradients_against_float64(
    shape, dtype, training, threshold, cpu_implementation
):
    """On a CPU a layer in training mode multiplies in floating point, otherwise in int8."""
    module = layer(threshold=threshold).to("cpu").train(training)
    weight = weight64(module)
    x = inputs(shape, dtype).requires_grad_()
    out = module(x)
    assert out.dtype == dtype
    assert out.shape == (*shape[:-1], N)
    seen = x.detach().double() if training else quantized64(x.detach(), threshold)
    bias = module.bias.detach().to(dtype).double()
    if x.numel():
        assert relative_error(out.detach(), seen @ weight.t() + bias) < TOLERANCE[dtype]
    with torch.no_grad():
        assert torch.equal(module(x), out)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    out.backward(seed)
    assert x.grad.shape == x.shape
    if x.numel():
        assert relative_error(x.grad, seed.double() @ weight) < TOLERANCE[dtype]
    wanted = seed.double().reshape(-1, N).sum(0)
    assert torch.allclose(module.bias.grad.double(), wanted, rtol=0.02, atol=0.05)
    assert module.weight.grad is None


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_weights_train(dtype, training, threshold):
    """has_fp16_weights: the weight is quantized for each product, its gradient is in float."""
    module = layer(threshold=threshold, has_fp16_weights=True).to("cpu", dtype).train(training)
    assert module.weight.dtype == dtype
    assert module.weight.requires_grad
    x = inputs(dtype=dtype).requires_grad_()
    out = module(x)
    codes, stats, _ = F.int8_vectorwise_quant(module.weight.data)
    weight = codes.double() * stats.double().unsqueeze(1) / 127
    seen = x.detach().double() if training else quantized64(x.detach(), threshold)
    wanted = seen @ weight.t() + module.bias.detach().double()
    assert relative_error(out.detach(), wanted) < TOLERANCE[dtype]
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    out.backward(seed)
    assert relative_error(x.grad, seed.double() @ weight) < TOLERANCE[dtype]
    assert module.weight.grad.dtype == dtype
    assert (
        relative_error(module.weight.grad, seed.double().t() @ x.detach().double())
        < (TOLERANCE[dtype])
    )
    with torch.no_grad():
        module.weight.mul_(2)
        assert relative_error(module(x) - module.bias, 2 * (wanted - module.bias.double())) < (
            TOLERANCE[dtype] * 2
        )
    assert set(module.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("function", [MatMul8bitLt, MatMul8bitFp])
def test_functions_have_gradients(function):
    """Both classes as programs call them, checked where the product is exact."""
    torch.manual_seed(3)
    A = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    B = torch.randn(5, 6, dtype=torch.float32, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    state = MatmulLtState()
    out = function.apply(A, B, None, bias, state)
    assert state.CB.dtype == torch.int8
    weight = state.CB.double() * state.SCB.double().unsqueeze(1) / 127
    assert relative_error(out.detach(), (A @ weight.t() + bias).detach()) < 0.02
    seed = torch.randn_like(out)
    out.backward(seed)
    assert torch.allclose(A.grad, seed @ weight, rtol=1e-6)
    assert torch.allclose(B.grad.double(), seed.t() @ A.detach(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(bias.grad, seed.sum(0))


def test_gradcheck_in_training():
    codes, stats, _ = F.int8_vectorwise_quant(torch.randn(5, 6))
    state = MatmulLtState(CB=codes, SCB=stats)
    state.has_fp16_weights = False
    A = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: matmul(a, codes, state=state, bias=b), (A, bias))


def test_matmul_without_state_and_with_out():
    A, B = torch.randn(3, 8), torch.randn(5, 8)
    wanted = (A @ B.t()).double()
    assert relative_error(matmul(A, B), wanted) < 0.03
    state = MatmulLtState()
    state.is_training = False
    out = torch.full((3, 5), float("nan"))
    assert matmul(A, B, out=out, state=state, threshold=3.0) is out
    assert state.threshold == 3.0
    assert relative_error(out, wanted) < 0.03
    with pytest.raises(InvalidArgumentError, match="SCB"):
        matmul(A, torch.zeros(5, 8, dtype=torch.int8))
    with pytest.raises(InvalidArgumentError, match="out is"):
        matmul(A, B, out=torch.empty(3, 6))


@pytest.mark.parametrize("training", [False, True])
def test_autocast(training):
    module = layer().to("cpu").train(training)
    x = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert relative_error(out.detach(), module(x).detach().double()) < 0.02


def test_float64_input():
    module = layer().to("cpu").eval()
    x = inputs()
    out = module(x.double())
    assert out.dtype == torch.float64
    assert torch.allclose(out, module(x).double(), rtol=1e-5)


def test_vmap_and_jvp():
    module = layer().to("cpu").eval()
    x = inputs((4, 3, K))
    dense = torch.nn.functional.linear(x, weight64(module).float(), module.bias)
    assert torch.allclose(torch.vmap(module)(x), dense, atol=1e-4)
    _, tangent = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    wanted = torch.nn.functional.linear(torch.ones_like(x), weight64(module).float())
    assert torch.allclose(tangent, wanted, atol=1e-4)


class TestQuantizing:
    """When a float weight becomes codes, and which."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_on_moving(self, dtype):
        module = layer().to(dtype)
        weight = module.weight
        before = weight.data.clone()
        assert before.dtype == dtype
        assert weight.CB is None
        moved = module.to("cpu")
        assert moved is module
        assert module.weight is weight
        codes, stats, _ = F.int8_vectorwise_quant(before.half())
        assert torch.equal(weight.data, codes)
        assert torch.equal(weight.CB, codes)
        assert torch.equal(weight.SCB, stats)
        assert not weight.requires_grad
        assert weight.__dict__.keys() == {"has_fp16_weights", "SCB"}

    def test_at_the_first_forward(self):
        module, other = layer().eval(), layer().to("cpu").eval()
        assert torch.equal(module(inputs()), other(inputs()))
        assert module.weight.dtype == torch.int8

    def test_weights_that_float16_cannot_hold(self):
        weight = torch.tensor([[1e6, -5e5], [1.0, 0.5]])
        parameter = Int8Params(weight, requires_grad=False).to("cpu")
        assert parameter.SCB.tolist() == [1e6, 1.0]
        assert parameter.data.tolist() == [[127, -64], [127, 64]]

    def test_not_on_meta_nor_by_a_cast(self):
        parameter = Int8Params(torch.randn(4, 8), requires_grad=False)
        assert parameter.to("meta").dtype == torch.float32
        assert parameter.to(torch.float16).dtype == torch.float16
        assert parameter.to(torch.float16).has_fp16_weights is False
        assert Int8Params(torch.randn(4, 8), has_fp16_weights=True).to("cpu").is_floating_point()

    def test_codes_survive_casts(self):
        module = layer().to("cpu")
        codes = module.weight.data.clone()
        for change in (torch.nn.Module.half, lambda m: m.to(torch.bfloat16)):
            change(module)
            assert torch.equal(module.weight.data, codes)
            assert module.weight.SCB.dtype == torch.float32
        assert torch.equal(module.weight.to(torch.float16).data, codes)

    def test_extra_attributes_are_ignored(self):
        old = Int8Params(torch.randn(4, 8), requires_grad=False).to("cpu")
        fields = dict(old.__dict__, _is_hf_initialized=True, CB=old.CB)
        new = Int8Params(old.data, requires_grad=True, **fields).to("cpu")
        assert torch.equal(new.SCB, old.SCB)
        assert not new.requires_grad

    def test_to_a_device_and_dtype_at_once(self):
        parameter = Int8Params(torch.randn(4, 8), requires_grad=False)
        assert parameter.to("cpu", torch.float16).dtype == torch.int8


class TestState:
    """`state` shows the weight, whatever frameworks do to either."""

    def test_shows_the_weight_after_a_forward(self):
        module = layer().to("cpu").eval()
        assert module.state.CB is None
        module(inputs())
        assert module.state.CB.data_ptr() == module.weight.data_ptr()
        assert module.state.SCB is module.weight.SCB
        assert module.state.is_training is False
        assert module.state.threshold == 6.0

    @pytest.mark.parametrize("forget", ["SCB", "CB", "reset"])
    def test_may_be_emptied(self, forget):
        module = layer().to("cpu").eval()
        wanted = module(inputs())
        if forget == "reset":
            module.state.reset_grads()
        else:
            setattr(module.state, forget, None)
        module.state.CxB = None
        assert torch.equal(module(inputs()), wanted)

    def test_follows_a_new_weight(self):
        module = layer().to("cpu").eval()
        module(inputs())
        weight = torch.randn(N, K)
        module.weight = Int8Params(weight.clone(), requires_grad=False).to("cpu")
        wanted = inputs().double() @ weight.double().t() + module.bias.double()
        assert relative_error(module(inputs()), wanted) < 0.03
        assert module.state.SCB is module.weight.SCB

    def test_a_plain_parameter_takes_the_states_statistics(self):
        module = layer().to("cpu").eval()
        wanted = module(inputs())
        module.weight = torch.nn.Parameter(module.weight.data, requires_grad=False)
        assert torch.equal(module(inputs()), wanted)
        assert isinstance(module.weight, Int8Params)

    def test_statistics_set_from_outside(self):
        """As accelerate does for offloaded weights."""
        module = layer().to("cpu").eval()
        wanted, scales = module(inputs()), module.weight.SCB
        module.weight = Int8Params(module.weight.data, requires_grad=False)
        module.weight.SCB = scales.clone()
        module.state.SCB = None
        assert torch.equal(module(inputs()), wanted)

    def test_codes_without_statistics(self):
        module = layer()
        module.weight = Int8Params(torch.zeros(N, K, dtype=torch.int8), requires_grad=False)
        with pytest.raises(InvalidArgumentError, match="SCB"):
            module(inputs())


class TestCopies:
    @pytest.mark.parametrize("forward_first", [False, True])
    def test_deepcopy(self, forward_first):
        module = layer().to("cpu").eval()
        if forward_first:
            module(inputs())
        other = copy.deepcopy(module)
        assert torch.equal(other(inputs()), module(inputs()))
        assert other.weight.data_ptr() != module.weight.data_ptr()
        assert other.weight.SCB.data_ptr() != module.weight.SCB.data_ptr()
        other.weight.data.zero_()
        other.weight.SCB.zero_()
        assert module(inputs()).ne(module.bias).any()

    def test_pickled_whole(self):
        module = layer().to("cpu").eval()
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
        assert isinstance(other.weight, Int8Params)
        assert torch.equal(other(inputs()), module(inputs()))

    def test_shallow_copy(self):
        weight = layer().to("cpu").weight
        other = copy.copy(weight)
        assert other.data_ptr() == weight.data_ptr()
        assert other.SCB is weight.SCB

    def test_meta_and_back_by_loading(self):
        module = layer().to("cpu").eval()
        empty = layer(device="meta")
        assert empty.weight.is_meta
        empty.load_state_dict(module.state_dict(), assign=True)
        assert torch.equal(empty.eval()(inputs()), module(inputs()))

    def test_to_meta(self):
        weight = layer().to("cpu").weight.to("meta")
        assert weight.is_meta
        assert weight.SCB.is_meta


@pytest.mark.parametrize("mode", ["no_grad", "grad", "float weights"])
def test_compile_fullgraph(mode):
    torch.manual_seed(0)
    options = {"has_fp16_weights": mode == "float weights", "threshold": 6.0}
    model = torch.nn.Sequential(
        Linear8bitLt(K, 64, **options), torch.nn.GELU(), Linear8bitLt(64, N, **options)
    ).to("cpu")
    model.train(mode == "float weights")
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    if mode == "no_grad":
        with torch.no_grad():
            for _ in range(2):
                assert torch.allclose(compiled(inputs()), model(inputs()), atol=1e-5)
        return
    gradients = []
    for function in (model, compiled):
        leaf = inputs().requires_grad_()
        function(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert relative_error(gradients[1], gradients[0].double()) < 1e-5
    if mode == "float weights":
        given = dict(compiled.named_parameters())["_orig_mod.0.weight"].grad
        assert relative_error(given, model[0].weight.grad.double()) < 1e-5


def test_pooler():
    pooler = bnb.autograd.GlobalOutlierPooler.get_instance()
    pooler.initialize()
    assert pooler is bnb.autograd.GlobalOutlierPooler.get_instance()
    pooler.add_outliers(torch.tensor([5, 2]), 64)
    pooler.add_outliers(torch.tensor([2, 7]), 64)
    pooler.add_outliers(torch.tensor([99]), 256)
    assert pooler.get_current_outlier_idx().tolist() == [2, 5, 7]
    pooler.initialize()
    with pytest.raises(RuntimeError, match="get_instance"):
        bnb.autograd.GlobalOutlierPooler()
