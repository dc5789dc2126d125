"""What the optimizer classes do around the rules."""

from __future__ import annotations

import copy
import inspect
import io
import warnings

import pytest
import torch

import bitsanywhere as bnb
from bitsanywhere import optim
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.ops import registry

CLASSES = [name for name in optim.__all__ if name != "GlobalOptimManager"]
NEEDED = {"SGD": {"momentum": 0.9}, "LARS": {"momentum": 0.9}}


def make(name, params, **kwargs):
    needed = next((v for k, v in NEEDED.items() if name.startswith(k)), {})
    return getattr(optim, name)(params, lr=1e-2, **needed, **kwargs)


def parameter(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype))
    p.grad = torch.randn(*shape, generator=generator).to(dtype)
    return p


def test_there_are_41_classes():
    assert len(optim.__all__) == 41


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_steps_with_the_state_its_name_says(name, monkeypatch):
    monkeypatch.setattr(registry, "load_backend", lambda device: ({}, None))
    large, small = parameter(70, 70), parameter(3)
    before = large.detach().clone(), small.detach().clone()
    optimizer = make(name, [large, small])
    optimizer.step()
    assert not torch.equal(large, before[0])
    assert not torch.equal(small, before[1])
    if name == "PytorchLARS":
        return
    assert "bitsandbytes" in str(type(optimizer))
    assert optimizer.is_paged == name.startswith("Paged")
    dtype = torch.uint8 if name.endswith("8bit") else torch.float32
    assert optimizer.state[large]["state1"].dtype == dtype
    assert optimizer.state[small]["state1"].dtype == torch.float32
    assert optimizer.args.optim_bits == (8 if name.endswith("8bit") else 32)
    assert optimizer.state[large]["step"] == 1


@pytest.mark.parametrize("name", CLASSES)
def test_the_first_step_equals_that_of_the_plain_class(name):
    """Fresh states are exact, so bits and paging make no difference to the first step."""
    plain = name.replace("Paged", "").replace("8bit", "").replace("32bit", "")
    results = []
    for which in (name, plain):
        p = parameter(70, 70)
        extra = {} if plain not in ("LAMB", "LARS") else {"max_unorm": 0.0}
        make(which, [p], **extra).step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_adamw_is_torchs():
    ours, theirs = parameter(50, 30), parameter(50, 30)
    a = optim.AdamW([ours], lr=1e-2, weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        ours.grad = torch.randn(50, 30, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_many_tensors_take_few_launches(monkeypatch):
    """300 parameters of two dtypes, in both kinds of state: one launch for each kind."""
    params = [
        parameter(*shape, seed=i, dtype=dtype)
        for i in range(75)
        for shape in ((10,), (64, 65))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    names = ("optimizer_update_32bit_multi", "optimizer_update_8bit_blockwise_multi")
    calls = []
    for name in names:
        op = getattr(bnb.ops, name)
        monkeypatch.setattr(
            op, "trusted", lambda *a, op=op: (calls.append(len(a[1])), op.check(*a))
        )
    optim.AdamW8bit(params).step()
    assert calls == [75, 75, 75, 75]


def test_layouts_dtypes_and_sizes():
    """Transposed, strided, empty, one-element and 3-D parameters move as contiguous ones do."""
    base = parameter(80, 90)
    expected = [base.detach().clone() for _ in range(2)]
    views = [
        torch.nn.Parameter(base.detach().clone().t().contiguous().t()),
        torch.nn.Parameter(torch.stack((base.detach(), base.detach()), dim=-1)[..., 0]),
    ]
    assert not any(view.is_contiguous() for view in views)
    reference = torch.nn.Parameter(base.detach().clone())
    others = [torch.nn.Parameter(torch.empty(0, 7)), parameter(1), parameter(3, 4, 500)]
    before = [p.detach().clone() for p in others]
    for p in (*views, reference, others[0]):
        p.grad = base.grad.clone() if p.numel() else torch.empty(0, 7)
    views[0].grad = base.grad.clone().t().contiguous().t()
    optim.AdamW8bit([*views, reference, *others], lr=1e-2).step()
    for view, start in zip(views, expected, strict=True):
        assert torch.equal(view, reference)
        assert not torch.equal(view, start)
    assert not torch.equal(others[1], before[1])
    assert not torch.equal(others[2], before[2])


def test_groups_closure_and_missing_gradients():
    a, b, idle = parameter(9, seed=1), parameter(9, seed=1), parameter(9)
    idle.grad = None
    groups = [{"params": [a, idle]}, {"params": [b], "lr": 1e-3}]
    optimizer = optim.Adam(groups, lr=1e-2)
    start, untouched = a.detach().clone(), idle.detach().clone()
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    torch.testing.assert_close(a - start, (b - start) * 10, rtol=1e-4, atol=1e-7)
    assert torch.equal(idle, untouched)
    assert idle not in optimizer.state
    late = parameter(9)
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    optimizer.step()
    assert optimizer.state[late]["step"] == 1
    assert optimizer.state[a]["step"] == 2


def test_a_scheduler_and_a_tensor_as_learning_rate():
    a, b = parameter(9), parameter(9)
    first = optim.Adam([a], lr=torch.tensor(1e-2))
    second = optim.Adam([b], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(second, 1, gamma=0.1)
    for optimizer in (first, second):
        optimizer.step()
    assert torch.equal(a, b)
    scheduler.step()
    before = b.detach().clone()
    second.step()
    assert (b - before).abs().max() < 2e-3


def test_autograd_notices_the_step():
    """A backward through a value that the step changed raises, as with torch's optimizers."""
    p = parameter(4)
    loss = (p * p).sum()
    optim.AdamW([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedLion32bit"])
def test_deepcopy_and_pickle_go_on_alike(name):
    p = parameter(70, 70)
    optimizer = make(name, [p])
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(optimizer), torch.load(buffer, weights_only=False)]
    p.grad.mul_(2)
    optimizer.step()
    for other in copies:
        (twin,) = other.param_groups[0]["params"]
        twin.grad = p.grad.clone()
        other.step()
        assert torch.equal(twin, p)


def sparse(p):
    p.grad = torch.zeros_like(p).to_sparse()


def not_finite(p):
    p.grad[0, 3] = float("inf")


def hidden_nan(p):
    p.grad[-1, -1] = float("nan")


def other_dtype(p):
    p.data = p.data.to(torch.bfloat16)


def other_shape(p):
    p.data = p.data[:3]


def float64(p):
    grad, p.grad = p.grad, None
    p.data = p.data.double()
    p.grad = grad.double()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (sparse, InvalidArgumentError), (not_finite, InvalidArgumentError),
        (hidden_nan, InvalidArgumentError), (other_dtype, DtypeError), (float64, DtypeError),
        (other_shape, InvalidArgumentError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [0, 1])
def test_bad_gradients_change_nothing(spoil, error, steps):
    good, bad = parameter(70, 70), parameter(70, 70, seed=1)
    optimizer = optim.AdamW8bit([good, bad])
    for _ in range(steps):
        optimizer.step()
    before, states = good.detach().clone(), copy.deepcopy(optimizer.state_dict())
    spoil(bad)
    with pytest.raises(error) as caught:
        optimizer.step()
    assert caught.value.why
    assert caught.value.mend
    assert torch.equal(good, before)
    after = optimizer.state_dict()["state"]
    for key, state in states["state"].items():
        assert after[key]["step"] == state["step"] == steps
        for name, tensor in state["__bnb_optimizer_quant_state__"].items():
            assert torch.equal(after[key]["__bnb_optimizer_quant_state__"][name], tensor)


def test_a_large_finite_gradient_is_fine():
    """Its sum overflows, its elements do not."""
    p = parameter(300)
    p.grad = torch.full((300,), 3e38)
    optim.Lion([p]).step()
    assert torch.isfinite(p).all()


def test_a_gradient_scaler_skips_the_step():
    """It finds the infinity itself, so that nothing is raised and nothing moves."""
    p = parameter(70, 70)
    optimizer = optim.AdamW8bit([p])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for bad in (False, True):
        before = p.detach().clone()
        optimizer.zero_grad()
        scaler.scale((p * p).sum()).backward()
        if bad:
            p.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(p, before) == bad
    assert optimizer.state[p]["step"] == 1


def test_moving_the_model_after_a_step_is_told():
    p = parameter(10)
    optimizer = optim.Adam([p])
    optimizer.step()
    p.grad = None
    p.data = p.data[:5].clone()
    p.grad = torch.ones(5)
    with pytest.raises(InvalidArgumentError, match="moved or replaced"):
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Adam", {"lr": -1}), ("Adam", {"eps": -1}), ("Adam", {"betas": (1.0, 0.9)}),
        ("Adam", {"betas": (0.9, float("nan"))}), ("Adam", {"weight_decay": -1}),
        ("Adam", {"optim_bits": 16}), ("Adam32bit", {"optim_bits": 8}),
        ("Adagrad8bit", {"optim_bits": 32}), ("Adagrad", {"lr_decay": 0.1}),
        ("Adagrad", {"initial_accumulator_value": 0.1}), ("RMSprop", {"centered": True}),
        ("PytorchLARS", {"nesterov": True}), ("PytorchLARS", {"momentum": -1}),
    ],
)  # fmt: skip
def test_settings_out_of_range(name, kwargs):
    with pytest.raises(InvalidArgumentError):
        getattr(optim, name)([parameter(3)], **kwargs)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Adam", {"amsgrad": True}), ("SGD", {"lr": 1, "nesterov": True}),
        ("RMSprop", {"momentum": 0.5}), ("LAMB", {"adam_w_mode": False}),
    ],
)  # fmt: skip
def test_settings_without_effect_warn(name, kwargs):
    with pytest.warns(UserWarning, match="has no effect"):
        getattr(optim, name)([parameter(3)], **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, [parameter(3)])


def test_betas_in_a_string():
    assert optim.Adam([parameter(3)], betas="(0.8, 0.95)").defaults["betas"] == (0.8, 0.95)


def test_args_stand_for_the_arguments():
    settings = optim.optimizer.MockArgs(
        {"optim_bits": 8, "min_8bit_size": 4, "max_unorm": 0.0, "skip_zeros": True}
    )
    p = parameter(5)
    p.grad[2] = 0.0
    before = p.detach().clone()
    optimizer = optim.Adam([p], args=settings)
    optimizer.step()
    assert optimizer.state[p]["state1"].dtype == torch.uint8
    assert ((p == before) == (p.grad == 0)).all()


def test_ademamix_grows_alpha_and_beta3():
    """Over t steps; then they stay (AdEMAMix, section 3)."""
    optimizer = optim.AdEMAMix([parameter(3)], t_alpha=4, t_beta3=5)
    config = optimizer.get_config(0, 0, optimizer.param_groups[0])
    numbers = [optimizer._numbers(config, step) for step in range(1, 8)]
    assert [n.alpha for n in numbers] == [1.25, 2.5, 3.75, 5.0, 5.0, 5.0, 5.0]
    measured = [0.9995019903, 0.9997503741, 0.9998334443, 0.9998750312, 0.9999, 0.9999, 0.9999]
    assert [n.beta3 for n in numbers] == pytest.approx(measured, abs=1e-10)


def test_update_step_moves_one_parameter():
    """The parts of `step` can be called one by one, as GaLore's optimizers do."""
    a, b, c, d = (parameter(70, 70, seed=i // 2) for i in range(4))
    whole, parts = optim.AdamW8bit([a, c]), optim.AdamW8bit([b, d])
    whole.step()
    parts.check_overrides()
    parts.to_gpu()
    group = parts.param_groups[0]
    for pindex, p in enumerate(group["params"]):
        parts.init_state(group, p, 0, pindex)
        parts.prefetch_state(p)
        parts.update_step(group, p, 0, pindex)
    assert torch.equal(a, b)
    assert torch.equal(c, d)


def test_signatures_are_callable_by_position():
    """Subclasses pass their arguments on by position; a slip would put one in another's place."""
    for name in CLASSES:
        cls = getattr(optim, name)
        names = list(inspect.signature(cls).parameters)
        marks = {"lr": 0.125, "weight_decay": 0.25, "eps": 0.5, "min_8bit_size": 7}
        given = {k: v for k, v in marks.items() if k in names}
        optimizer = cls([parameter(3)], **given)
        for key in ("lr", "weight_decay", "eps"):
            if key in given:
                assert optimizer.defaults[key] == given[key], name
        if "min_8bit_size" in given:
            assert optimizer.args.min_8bit_size == 7, name
        if "max_unorm" in names and name != "PytorchLARS":
            assert cls([parameter(3)], lr=1, max_unorm=0.75).args.max_unorm == 0.75
