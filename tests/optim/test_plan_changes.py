"""States and parameters that change under a plan, which it must notice."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.optim.pairs import Pair

pytestmark = pytest.mark.usefixtures("manager")


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
