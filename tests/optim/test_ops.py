"""The optimizer ops by themselves: what they refuse, and how they are seen by torch."""

from __future__ import annotations

import pytest
import torch

import bitsanywhere as bnb
from bitsanywhere import functional as F
from bitsanywhere import ops
from bitsanywhere.errors import DtypeError, InvalidArgumentError
from bitsanywhere.formats import create_dynamic_map

N = 300
NUMBERS = (0.9, 0.99, 0.0, 0.0, 1e-8, 0.1, 2, 0.01, 1.0, False)
ORDER_8BIT = (0.9, 0.99, 0.0, 0.0, 1e-8, 2, 0.01)


def arguments(bits):
    """Named arguments of one call for adam."""
    generator = torch.Generator().manual_seed(0)
    made = {
        "name": "adam",
        "g": torch.randn(N, generator=generator),
        "p": torch.randn(N, generator=generator),
    }
    if bits == 32:
        return {**made, "state1": torch.zeros(N), "state2": torch.zeros(N), "unorm": None}
    codes = {f"state{i}": torch.zeros(N, dtype=torch.uint8) for i in (1, 2)}
    maps = {f"qmap{i}": create_dynamic_map(i == 1) for i in (1, 2)}
    return {**made, **codes, **maps, **{f"absmax{i}": torch.zeros(2) for i in (1, 2)}}


def call(bits, a, many=False):
    if bits == 32 and many:
        lists = [[a[k]] if a[k] is not None else [] for k in ("g", "p", "state1", "state2")]
        return ops.optimizer_update_32bit_multi(a["name"], *lists, *NUMBERS)
    if bits == 32:
        limit = 0.5 if a.get("limit") else 0.0
        tensors = (a["g"], a["p"], a["state1"], a["state2"], a["unorm"])
        return ops.optimizer_update_32bit(a["name"], *tensors, limit, 1.0, *NUMBERS)
    if many:
        keys = ("g", "p", "state1", "state2", "absmax1", "absmax2")
        lists = [[a[k]] if a[k] is not None else [] for k in keys]
        return ops.optimizer_update_8bit_blockwise_multi(
            a["name"], *lists, a["qmap1"], a["qmap2"], *NUMBERS
        )
    states = (a["g"], a["p"], a["state1"], a["state2"])
    maps = (a["qmap1"], a["qmap2"], a["absmax1"], a["absmax2"])
    return ops.optimizer_update_8bit_blockwise(a["name"], *states, *ORDER_8BIT, *maps, 0.1, 1.0)


WRONG = [
    ("name", "adamw", InvalidArgumentError),
    ("name", "lion", InvalidArgumentError),
    ("g", torch.randn(N).bfloat16(), DtypeError),
    ("g", torch.randn(N - 1), InvalidArgumentError),
    ("g", torch.randn(N).to_sparse(), InvalidArgumentError),
    ("g", torch.randn(2 * N)[::2], InvalidArgumentError),
    ("g", torch.randn(N, device="meta"), InvalidArgumentError),
    ("p", torch.randn(N).double(), DtypeError),
    ("p", torch.randn(2 * N)[::2], InvalidArgumentError),
    ("state1", torch.zeros(N - 1), InvalidArgumentError),
    ("state1", torch.zeros(N).half(), DtypeError),
    ("state1", torch.zeros(2 * N)[::2], InvalidArgumentError),
    ("state2", None, InvalidArgumentError),
    ("state2", torch.zeros(N + 1), InvalidArgumentError),
]
WRONG_8BIT = [
    ("absmax1", torch.zeros(1), InvalidArgumentError),
    ("absmax1", torch.zeros(2).half(), DtypeError),
    ("absmax2", None, InvalidArgumentError),
    ("absmax2", torch.zeros(3), InvalidArgumentError),
    ("qmap1", torch.zeros(16), InvalidArgumentError),
    ("qmap2", None, InvalidArgumentError),
    ("qmap2", torch.zeros(256).double(), DtypeError),
]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("bits", [8, 32])
def test_right_arguments_are_taken(bits, many):
    a = arguments(bits)
    before = a["p"].clone()
    call(bits, a, many)
    assert not torch.equal(a["p"], before)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("bits", "key", "value", "error"),
    [(bits, *case) for bits in (8, 32) for case in WRONG] + [(8, *case) for case in WRONG_8BIT],
)
def test_wrong_arguments(bits, key, value, error, many):
    a = arguments(bits)
    if bits == 8 and key.startswith("state") and value is not None:
        other = torch.float16 if value.dtype == torch.float16 else torch.uint8
        value = torch.zeros(2 * N, dtype=other)[:: value.stride(0)][: value.numel()]
    a[key] = value
    kept = {k: v.clone() for k, v in a.items() if isinstance(v, torch.Tensor) and k != key}
    with pytest.raises(error) as caught:
        call(bits, a, many)
    assert caught.value.why
    assert caught.value.mend
    for k, v in kept.items():
        assert torch.equal(a[k], v)


def test_a_limit_needs_a_place_for_the_norm():
    a = {**arguments(32), "limit": True}
    for unorm in (None, torch.zeros(2), torch.zeros(1).half()):
        with pytest.raises((InvalidArgumentError, DtypeError)):
            call(32, {**a, "unorm": unorm})
    call(32, {**a, "unorm": torch.zeros(1)})


def test_lists_that_do_not_fit():
    one = torch.ones(4)
    for g, p in (([], []), ([one], [one, one]), ([one, one.bfloat16()], [one, one.bfloat16()])):
        states = [torch.zeros(4) for _ in p]
        with pytest.raises(InvalidArgumentError):
            ops.optimizer_update_32bit_multi("lion", g, p, states, [], *NUMBERS)


@pytest.mark.parametrize("bits", [8, 32])
def test_the_dispatcher_runs_the_same(bits):
    """Through torch.ops, and in a compiled function, the result is that of the direct call."""
    direct, dispatched, compiled = arguments(bits), arguments(bits), arguments(bits)
    call(bits, direct, many=True)
    name = f"optimizer_update_{'32bit' if bits == 32 else '8bit_blockwise'}_multi"
    op = getattr(torch.ops.bitsanywhere, name)

    lists = ["g", "p", "state1", "state2", *(["absmax1", "absmax2"] if bits == 8 else [])]
    maps = ["qmap1", "qmap2"] if bits == 8 else []

    def through(a):
        op("adam", *([a[k]] for k in lists), *(a[k] for k in maps), *NUMBERS)

    through(dispatched)
    torch.compile(through, backend="aot_eager", fullgraph=True)(compiled)
    for key, tensor in direct.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(dispatched[key], tensor), key
            assert torch.equal(compiled[key], tensor), key


def test_meta_tensors_are_checked_and_nothing_more():
    on_meta = [torch.empty(N, device="meta") for _ in range(4)]
    ops.optimizer_update_32bit_multi("adam", *([t] for t in on_meta), *NUMBERS)
    with pytest.raises(InvalidArgumentError):
        ops.optimizer_update_32bit_multi("lion", *([t] for t in on_meta), *NUMBERS)


def test_functional_names():
    """With parameters that require gradients, as optimizers of others call them."""
    a, b = arguments(32), arguments(8)
    for made in (a, b):
        made["p"].requires_grad_()
    F.optimizer_update_32bit(
        "adam", a["g"], a["p"], a["state1"], 0.9, 1e-8, 1, 0.01, a["state2"], 0.99,
        unorm_vec=torch.zeros(1), max_unorm=1e9,
    )  # fmt: skip
    F.optimizer_update_8bit_blockwise(
        "adam", b["g"], b["p"], b["state1"], b["state2"], 0.9, 0.99, 0.0, 0.0, 1e-8, 1, 0.01,
        b["qmap1"], b["qmap2"], b["absmax1"], b["absmax2"],
    )  # fmt: skip
    torch.testing.assert_close(a["p"], b["p"], rtol=1e-6, atol=1e-6)
    assert not torch.equal(b["p"], arguments(8)["p"])
    assert b["absmax1"].min() > 0
    assert bnb.functional.optimizer_update_32bit is F.optimizer_update_32bit
