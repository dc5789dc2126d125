"""State dicts: what is in them, what may be loaded, and that a run goes on as if uninterrupted."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bitsanywhere import optim
from bitsanywhere.errors import CheckpointError

KEY = "__bnb_optimizer_quant_state__"
NAMES = ["AdamW8bit", "AdamW32bit", "PagedAdamW8bit", "Lion8bit", "AdEMAMix8bit", "LAMB"]


def params():
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((70, 70), (11,))]


def steps(optimizer, members, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in members:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def saved(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_going_on(name):
    members = params()
    optimizer = getattr(optim, name)(members, lr=1e-2)
    steps(optimizer, members, 2, 1)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in members]
    resumed = getattr(optim, name)(twins, lr=1e-5)
    resumed.load_state_dict(saved(optimizer.state_dict()))
    steps(optimizer, members, 3, 2)
    steps(resumed, twins, 3, 2)
    for p, twin in zip(members, twins, strict=True):
        assert torch.equal(p, twin)


def test_paged_states_are_saved_copied_and_loaded(caplog):
    """On a CPU they are in ordinary memory, which is told once."""
    from bitsanywhere.functional import paged

    paged._note.cache_clear()
    p = torch.nn.Parameter(torch.ones(400, 300))
    optimizer = optim.PagedAdamW8bit([p])
    steps(optimizer, [p], 2, 1)
    assert len([r for r in caplog.records if "ordinary" in r.message]) == 1
    assert optimizer.state[p]["state1"].is_paged is False
    loaded = optim.PagedAdamW8bit([p])
    loaded.load_state_dict(saved(optimizer.state_dict()))
    twin = copy.deepcopy(optimizer)
    for other in (loaded, twin):
        (q,) = other.param_groups[0]["params"]
        steps(other, [q], 0, 1)
        other.step()
        assert hasattr(other.state[q]["state1"], "is_paged")
    assert not hasattr(optimizer.state_dict()["state"][0][KEY]["state1"], "is_paged")


def test_what_is_in_it():
    """As measured on bitsandbytes 0.50.2."""
    members = params()
    optimizer = optim.AdEMAMix8bit(members)
    steps(optimizer, members, 1, 1)
    state = optimizer.state_dict()["state"]
    assert set(state[0]) == {"step", KEY}
    shapes = {k: (t.dtype, tuple(t.shape)) for k, t in state[0][KEY].items()}
    assert shapes == {
        "state1": (torch.uint8, (2, 70, 70)), "state2": (torch.uint8, (70, 70)),
        "absmax1": (torch.float32, (2, 20)), "absmax2": (torch.float32, (20,)),
        "qmap1": (torch.float32, (256,)), "qmap2": (torch.float32, (256,)),
    }  # fmt: skip
    small = {k: (t.dtype, tuple(t.shape)) for k, t in state[1][KEY].items()}
    assert small == {"state1": (torch.float32, (2, 11)), "state2": (torch.float32, (11,))}
    group = optimizer.state_dict()["param_groups"][0]
    assert set(group) >= {"lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3"}


def test_loaded_tensors_are_copies():
    members = params()
    optimizer = optim.AdamW8bit(members)
    steps(optimizer, members, 1, 1)
    state_dict = optimizer.state_dict()
    before = copy.deepcopy(state_dict)
    other = optim.AdamW8bit(members)
    other.load_state_dict(state_dict)
    steps(other, members, 1, 2)
    for key, tensor in before["state"][0][KEY].items():
        assert torch.equal(state_dict["state"][0][KEY][key], tensor)


def test_flat_states_and_tensor_steps_are_taken():
    """Older bitsandbytes saved states without nesting."""
    members = params()
    optimizer = optim.AdamW8bit(members)
    steps(optimizer, members, 1, 1)
    state_dict = optimizer.state_dict()
    for key, state in state_dict["state"].items():
        state_dict["state"][key] = {"step": torch.tensor(1.0), **state[KEY]}
    other = optim.AdamW8bit(members)
    other.load_state_dict(state_dict)
    assert other.state[members[0]]["step"] == 1


def test_hooks_run():
    members = params()
    optimizer = optim.AdamW8bit(members)
    steps(optimizer, members, 1, 1)
    seen = []
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer.register_state_dict_post_hook(lambda o, d: seen.append("saved"))
    optimizer.register_step_post_hook(lambda o, a, k: seen.append("stepped"))
    optimizer.load_state_dict(optimizer.state_dict())
    steps(optimizer, members, 1, 1)
    assert seen == ["saved", "loaded", "stepped"]


def drop_absmax(d):
    del d["state"][0][KEY]["absmax2"]


def cut_state(d):
    d["state"][0][KEY]["state1"] = d["state"][0][KEY]["state1"][:-1]


def cut_absmax(d):
    d["state"][0][KEY]["absmax1"] = d["state"][0][KEY]["absmax1"][:-1]


def half_absmax(d):
    d["state"][0][KEY]["absmax1"] = d["state"][0][KEY]["absmax1"].half()


def cut_map(d):
    d["state"][0][KEY]["qmap1"] = d["state"][0][KEY]["qmap1"][:16]


def mixed(d):
    d["state"][0][KEY]["state2"] = d["state"][0][KEY]["state2"].float()


def long_state(d):
    d["state"][0][KEY]["state1"] = d["state"][0][KEY]["state1"].long()


def no_state2(d):
    del d["state"][1][KEY]["state2"]


def bad_step(d):
    d["state"][1]["step"] = -1


def no_step(d):
    del d["state"][1]["step"]


def unknown(d):
    d["state"][7] = d["state"][1]


def not_a_dict(d):
    d["state"][1] = torch.zeros(3)


def not_nested(d):
    d["state"][1][KEY] = 5


def fewer_parameters(d):
    d["param_groups"][0]["params"].pop()


def no_groups(d):
    d["param_groups"] = []


def no_groups_at_all(d):
    del d["param_groups"]


def no_state(d):
    del d["state"]


def broken_groups(d):
    d["param_groups"] = [{"lr": 1}]


@pytest.mark.parametrize(
    "spoil",
    [
        drop_absmax, cut_state, cut_absmax, half_absmax, cut_map, mixed, long_state, no_state2,
        bad_step, no_step, unknown, not_a_dict, not_nested, fewer_parameters, no_groups,
        broken_groups, no_groups_at_all, no_state,
    ],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(spoil):
    members = params()
    optimizer = optim.AdamW8bit(members, lr=0.5)
    steps(optimizer, members, 1, 1)
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(before)
    wrong["param_groups"][0]["lr"] = 0.25
    spoil(wrong)
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(wrong)
    assert caught.value.why
    assert caught.value.mend
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert after["state"][key]["step"] == state["step"]
        for name, tensor in state[KEY].items():
            assert torch.equal(after["state"][key][KEY][name], tensor)


def test_a_state_of_another_rule_is_refused():
    members = params()
    lion = optim.Lion8bit(members)
    steps(lion, members, 1, 1)
    adam = optim.Adam8bit(members)
    with pytest.raises(CheckpointError, match="state2"):
        adam.load_state_dict(lion.state_dict())
    steps(adam, members, 1, 1)
    with pytest.raises(CheckpointError, match="one state"):
        lion.load_state_dict(adam.state_dict())


def test_bitsandbytes_reads_ours_and_we_read_theirs():
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    environment = dict(os.environ, BITSANYWHERE_BACKEND="0", CUDA_VISIBLE_DEVICES="")
    script = Path(__file__).parent / "exchange.py"
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 26
    for name, distance in found.items():
        # A state in 8 bits may be rounded to the other side of a code's border.
        assert distance <= (0.02 if "8bit" in name else 1e-4), name
