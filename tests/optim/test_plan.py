"""Steps by plan: alike to the last bit with steps without, and what a plan must notice."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from bitsanywhere import ops
from bitsanywhere.errors import BitsAnywhereError, DtypeError, InvalidArgumentError
from bitsanywhere.optim import plan
from tests.optim.pairs import SHAPES, Pair

NAMES = ("optimizer_update_32bit_multi", "optimizer_update_8bit_blockwise_multi")
pytestmark = pytest.mark.usefixtures("manager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["AdamW8bit", "AdamW", "Lion8bit", "AdEMAMix8bit", "SGD", "PagedAdam8bit", "RMSprop"]
)
def test_steps_by_plan_are_the_same(launches, name, dtype):
    settings = {"momentum": 0.9} if name == "SGD" else {}
    pair = Pair(launches, name, dtype, **settings).steady()
    assert all(pair.step() for _ in range(3))
    assert sum(launches) == 5 * len(SHAPES)


def test_gradients_may_stay_where_they_are(launches):
    pair = Pair(launches).steady()
    pair.both(lambda o, params: [p.grad.mul_(0.5) for p in params])
    assert pair.go()


def test_the_learning_rate_and_other_settings_change_each_step(launches):
    pair = Pair(launches).steady()
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in pair.optimizers]
    for _ in range(3):
        assert pair.step()
        for scheduler in schedulers:
            scheduler.step()
    pair.both(lambda o, params: o.param_groups[1].update(betas=(0.5, 0.6), eps=1e-3))
    pair.both(lambda o, params: setattr(o.args, "skip_zeros", True))
    assert pair.step()


def test_groups_that_agreed_may_part(launches):
    pair = Pair(launches, "AdamW")
    pair.both(lambda o, params: o.param_groups[1].update(weight_decay=0.01))
    pair.steady()
    assert launches == [len(SHAPES)] * 2
    pair.both(lambda o, params: o.param_groups[1].update(lr=0.5))
    assert [pair.step() for _ in range(3)] == [False, False, True]


def test_a_missing_gradient_and_its_return(launches):
    pair = Pair(launches).steady()
    assert not pair.step(without=[1])
    # Its count of steps now differs from the others'.
    assert [pair.step() for _ in range(3)] == [False, True, True]
    assert pair.optimizers[0].state[pair.params[0][1]]["step"] == 7
    assert pair.optimizers[0].state[pair.params[0][0]]["step"] == 8


def test_two_of_one_shape_take_turns(launches):
    pair = Pair(launches)
    assert [pair.step(without=[0]) for _ in range(3)] == [False, False, True]
    assert not pair.step(without=[4])


def test_a_late_gradient(launches):
    pair = Pair(launches)
    assert [pair.step(without=[2]) for _ in range(3)] == [False, False, True]
    assert not pair.step()


def test_a_plan_that_never_fits_is_made_ever_more_rarely(launches, monkeypatch):
    made = []
    real = plan.Plan.of
    monkeypatch.setattr(plan.Plan, "of", lambda *args: (made.append(1), real(*args))[1])
    pair = Pair(launches)
    assert not any(pair.step(without=[i % 2]) for i in range(40))
    assert 3 <= len(made) <= 5


def test_a_group_and_parameters_are_added(launches):
    pair = Pair(launches).steady()
    late = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    for optimizer, params, p in zip(pair.optimizers, pair.params, late, strict=True):
        params.append(p)
        optimizer.add_param_group({"params": [p], "lr": 1.0})
    assert [pair.step() for _ in range(3)] == [False, False, True]
    pair.both(lambda o, params: o.param_groups[0]["params"].append(params[5]))
    pair.both(lambda o, params: o.param_groups[2]["params"].clear())
    assert not pair.step()


def test_a_parameter_that_changes_its_group(launches):
    pair = Pair(launches).steady()

    def change(optimizer, params):
        first, second = (group["params"] for group in optimizer.param_groups)
        second.insert(0, first.pop())

    pair.both(change)
    assert not pair.step()


def test_an_override_counts_from_the_next_reading_on(launches, manager):
    pair = Pair(launches).steady()
    for params in pair.params:
        manager.override_config(params[0], "lr", 0.0)
    assert pair.step()
    pair.both(lambda o, params: o.check_overrides())
    before = pair.params[0][0].detach().clone()
    assert [pair.step() for _ in range(3)] == [False, False, True]
    assert torch.equal(pair.params[0][0], before)


def sparse(p):
    p.grad = torch.zeros_like(p).to_sparse()


def other_dtype(p):
    p.data = p.data.to(torch.bfloat16)


def fewer_elements(p):
    p.data = p.data[:3]


def another_shape(p):
    p.data = p.data.view(-1)


def shorter_gradient(p):
    p.grad.data = p.grad.data[:3]


def other_gradient(p):
    p.grad.data = p.grad.data.double()


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (sparse, InvalidArgumentError), (other_dtype, DtypeError),
        (fewer_elements, InvalidArgumentError), (another_shape, InvalidArgumentError),
        (shorter_gradient, InvalidArgumentError), (other_gradient, DtypeError),
    ],
)  # fmt: skip
def test_what_does_not_fit_raises_and_changes_nothing(launches, spoil, error):
    pair = Pair(launches).steady()
    pair.new_gradients()
    optimizer, (good, *_, bad) = pair.optimizers[0], pair.params[0]
    before, states = good.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    spoil(bad)
    with pytest.raises(error):
        optimizer.step()
    assert torch.equal(good, before)
    for key, state in optimizer.state_dict()["state"].items():
        assert state["step"] == states[key]["step"] == 4
        for name, tensor in state["__bnb_optimizer_quant_state__"].items():
            assert torch.equal(tensor, states[key]["__bnb_optimizer_quant_state__"][name])


def test_a_shorter_state_raises(launches):
    pair = Pair(launches).steady()
    pair.new_gradients()
    state = pair.optimizers[0].state[pair.params[0][0]]
    state["state1"].data = state["state1"].data[:3]
    with pytest.raises(BitsAnywhereError, match="moved or replaced"):
        pair.optimizers[0].step()


def test_autograd_notices_a_planned_step(launches):
    pair = Pair(launches).steady()
    loss = (pair.params[0][0] ** 2).sum()
    assert pair.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_limit_of_the_updates_norm_needs_no_plan(launches):
    pair = Pair(launches, "LAMB")
    assert not any(pair.step() for _ in range(4))
    limited = Pair(launches, "LAMB", max_unorm=0.0).steady()
    limited.both(lambda o, params: setattr(o.args, "max_unorm", 0.5))
    limited.both(lambda o, params: [s.update(unorm_vec=torch.zeros(1)) for s in o.state.values()])
    assert not limited.step()


def test_a_watched_step_is_dispatched(launches):
    """Modes (fake tensors, profilers of ops) see the ops that a plan would go around."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    pair = Pair(launches).steady()
    with Watch():
        assert not pair.step()
    assert sum("optimizer_update" in name for name in seen) >= 2
    assert pair.step()


def test_a_plan_keeps_no_gradient_and_no_state(launches):
    pair = Pair(launches).steady()
    optimizer, params = pair.optimizers[0], pair.params[0]
    held = [weakref.ref(params[0].grad), weakref.ref(optimizer.state[params[0]]["state1"])]
    optimizer.zero_grad()
    for state in optimizer.state.values():
        state["state1"] = state["state1"].clone()
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_no_plan_without_the_guards_of_torch(launches, monkeypatch):
    monkeypatch.setattr(plan, "TensorGuards", None)
    pair = Pair(launches)
    assert not any(pair.step() for _ in range(4))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_on_a_cpu_have_no_plan(name):
    """Their gradients must be looked at before each step."""
    assert getattr(ops, name).bind(torch.device("cpu"), "adam", [torch.zeros(1)]) is None


def test_update_step_beside_a_plan(launches):
    """The parts of a step may be called one by one between whole ones."""
    pair = Pair(launches).steady()
    pair.new_gradients()
    pair.both(lambda o, params: o.update_step(o.param_groups[0], params[0], 0, 0))
    assert not pair.go()
