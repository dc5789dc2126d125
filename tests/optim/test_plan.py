"""Steps by plan: alike to the last bit with steps without, and what a plan must notice.

CPU tensors have no plans. Here they have: the ops' references stand for a backend that finds all
tensors at the addresses it was given, as a GPU's would.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import weakref

import pytest
import torch

from bitsanywhere import ops, optim
from bitsanywhere.errors import BitsAnywhereError, DtypeError, InvalidArgumentError
from bitsanywhere.ops import registry
from bitsanywhere.optim import plan

NAMES = ("optimizer_update_32bit_multi", "optimizer_update_8bit_blockwise_multi")
SHAPES = ((20, 20), (11,), (3, 150), (0, 5), (20, 20))


def at(address: int, like: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that lies there."""
    if not like.numel():
        return torch.empty(like, dtype=dtype)
    raw = (ctypes.c_char * (like.numel() * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype).view(like)


@pytest.fixture
def launches(monkeypatch) -> list[int]:
    """How many parameters each launch by plan had."""
    seen: list[int] = []

    def backend_kernel(op):
        def bind(device, name, p, *columns):
            assert all(x.device == device for x in p)
            looks = [[(x.data_ptr(), x.shape, x.dtype) for x in c] for c in (p, *columns)]

            def launch(g, *rest):
                seen.append(len(g))
                tensors = [[at(*look) for look in column] for column in looks]
                grads = [at(a, look[1], look[2]) for a, look in zip(g, looks[0], strict=True)]
                op.without_grad(name, grads, *tensors, *rest)

            return launch

        return registry.Kernel(run=op.without_grad, why_not=lambda *args: None, bind=bind)

    kernels = {name: backend_kernel(getattr(ops, name)) for name in NAMES}
    monkeypatch.setattr(registry, "load_backend", lambda device: (kernels, None))
    return seen


@pytest.fixture(autouse=True)
def manager():
    manager = optim.GlobalOptimManager.get_instance()
    manager.initialize()
    yield manager
    manager.initialize()


class Pair:
    """An optimizer with plans and its twin without, which take the same steps."""

    def __init__(self, launches, name="AdamW8bit", dtype=torch.float32, shapes=SHAPES, **settings):
        self.launches, self.generator = launches, torch.Generator().manual_seed(1)
        start = [torch.randn(s, generator=self.generator).to(dtype) for s in shapes]
        self.params = [[torch.nn.Parameter(x.clone()) for x in start] for _ in range(2)]
        settings = {"lr": 1e-2, "min_8bit_size": 300, **settings}
        self.optimizers = [getattr(optim, name)(self.split(p), **settings) for p in self.params]

    def split(self, params):
        """Two groups."""
        return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.5}]

    def both(self, change) -> None:
        """Does something to the optimizer and its parameters, twice."""
        for optimizer, params in zip(self.optimizers, self.params, strict=True):
            change(optimizer, params)

    def new_gradients(self, without=()) -> None:
        for i, (p, q) in enumerate(zip(*self.params, strict=True)):
            g = torch.randn(p.shape, generator=self.generator).to(p.dtype)
            p.grad, q.grad = (None, None) if i in without else (g, g.clone())

    def step(self, without=()) -> bool:
        """One step of both, whose results must be the same; whether it went by plan."""
        self.new_gradients(without)
        return self.go()

    def go(self) -> bool:
        self.optimizers[1]._planner.forget()
        self.optimizers[1]._planner._waited = -10
        before = len(self.launches)
        self.optimizers[0].step()
        by_plan = len(self.launches) > before
        self.optimizers[1].step()
        for p, q in zip(*self.params, strict=True):
            assert torch.equal(p, q)
            mine, other = (o.state.get(x, {}) for o, x in zip(self.optimizers, (p, q)))
            assert mine.keys() == other.keys()
            for key, value in mine.items():
                same = torch.equal if isinstance(value, torch.Tensor) else int.__eq__
                assert same(value, other[key]), key
        return by_plan

    def steady(self) -> Pair:
        """After as many steps as a plan takes."""
        assert [self.step() for _ in range(4)] == [False, False, True, True]
        return self


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


def replaced(state):
    state["state1"] = state["state1"].clone()


def replaced_absmax(state):
    state["absmax2"] = state["absmax2"] * 2


def moved(state):
    state["state2"].data = state["state2"].data.clone()


def other_map(state):
    state["qmap1"] = state["qmap1"] / 2


def another_dict(state):
    state.update(copy.deepcopy(dict(state)))


def other_step(state):
    state["step"] += 1


@pytest.mark.parametrize(
    "change", [replaced, replaced_absmax, moved, other_map, another_dict, other_step]
)
def test_a_states_tensor_is_replaced(launches, change):
    pair = Pair(launches).steady()
    pair.both(lambda o, params: change(o.state[params[0]]))
    assert [pair.step() for _ in range(3)] == [False, False, True]


def test_a_state_is_dropped(launches):
    pair = Pair(launches).steady()
    pair.both(lambda o, params: o.state.pop(params[0]))
    assert not pair.step()
    assert pair.optimizers[0].state[pair.params[0][0]]["step"] == 1
    pair.both(lambda o, params: o.state[params[1]].pop("state1"))
    assert not pair.step()


def test_states_are_swapped(launches):
    pair = Pair(launches).steady()

    def change(optimizer, params):
        a, b = (optimizer.state.pop(params[i]) for i in (0, 4))
        optimizer.state[params[4]], optimizer.state[params[0]] = a, b

    pair.both(change)
    assert not pair.step()


def test_a_state_dict_is_loaded(launches):
    pair = Pair(launches).steady()
    saved = [copy.deepcopy(o.state_dict()) for o in pair.optimizers]
    assert pair.step()
    for optimizer, state_dict in zip(pair.optimizers, saved, strict=True):
        optimizer.load_state_dict(state_dict)
    assert [pair.step() for _ in range(3)] == [False, False, True]
    assert pair.optimizers[0].state[pair.params[0][0]]["step"] == 7


def test_copies_make_plans_of_their_own(launches):
    pair = Pair(launches).steady()
    twin = copy.deepcopy(pair.optimizers[0])
    before = [p.detach().clone() for p in pair.params[0]]
    for _ in range(4):
        for group in twin.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        twin.step()
    assert all(map(torch.equal, pair.params[0], before))
    assert pair.step()


def new_memory(p):
    p.data = p.data.clone()


def transposed(p):
    p.data = p.data.t()


def requires_no_grad(p):
    p.requires_grad_(False)


@pytest.mark.parametrize("change", [new_memory, transposed, requires_no_grad])
def test_a_parameter_changes(launches, change):
    pair = Pair(launches).steady()
    pair.both(lambda o, params: change(params[0]))
    assert not pair.step()


@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_what_is_not_contiguous_never_goes_by_plan(launches, which):
    pair = Pair(launches, shapes=((20, 30),))
    for _ in range(4):
        if which == "parameter":
            pair.both(
                lambda o, params: setattr(params[0], "data", params[0].data.t().contiguous().t())
            )
        pair.new_gradients()
        if which == "gradient":
            pair.both(
                lambda o, params: setattr(params[0], "grad", params[0].grad.t().contiguous().t())
            )
        assert not pair.go()


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
