"""Stored quant states: the format, and hostile metadata."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from bitsanywhere import checkpoint, nn
from bitsanywhere import functional as F
from bitsanywhere.errors import BitsAnywhereError, CheckpointError

KEY = "quant_state.bitsandbytes__nf4"


def packed_state(
    nested: bool = True, shape: tuple[int, ...] = (8, 96)
) -> tuple[torch.Tensor, dict]:
    codes, state = F.quantize_4bit(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)),
        quant_type="nf4",
        compress_statistics=nested,
    )
    return codes, state.as_dict(packed=True)


def with_json(stats: dict, **changes) -> dict:
    content = {**checkpoint.unpack_tensor_to_dict(stats[KEY]), **changes}
    return {**stats, KEY: F.pack_dict_to_tensor(content)}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "weight.", "model.layers.0.weight."])
def test_roundtrip_through_safetensors(nested, prefix):
    codes, stats = packed_state(nested)
    stored = {prefix + key: value for key, value in stats.items()}
    state = F.QuantState.from_dict(load(save(stored)), device="cpu")
    original = F.QuantState.from_dict(stats, device="cpu")
    assert state == original
    again = state.as_dict(packed=True)
    assert again.keys() == stats.keys()
    assert all(torch.equal(again[key], stats[key]) for key in stats)
    assert state.shape == (8, 96)


@pytest.mark.parametrize("nested", [False, True])
def test_unpacked_roundtrip(nested):
    codes, state = F.quantize_4bit(
        torch.randn(4, 64).bfloat16(), quant_type="fp4", compress_statistics=nested
    )
    fields = state.as_dict()
    assert fields["dtype"] == "bfloat16"
    assert F.QuantState.from_dict(fields, device="cpu") == state
    assert "shape" in fields, "from_dict must leave its argument as it was"


def test_json_is_byte_for_byte_the_peers():
    """Written down from bitsandbytes 0.50.2; the order of keys is part of the bytes."""
    _, state = F.quantize_4bit(torch.ones(8, 64).bfloat16(), quant_type="nf4")
    stored = bytes(state.as_dict(packed=True)[KEY].tolist())
    assert stored == (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [8, 64]}'
    )
    _, state = F.quantize_4bit(torch.ones(8, 64), quant_type="nf4", compress_statistics=True)
    assert bytes(state.as_dict(packed=True)[KEY].tolist()) == (
        b'{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 64], '
        b'"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.0}'
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_type": "int4"},
        {"quant_type": "fp4"},
        {"quant_type": None},
        {"blocksize": 63},
        {"blocksize": True},
        {"blocksize": "64"},
        {"blocksize": 1 << 70},
        {"dtype": "float64"},
        {"dtype": "os.system"},
        {"dtype": ["float32"]},
        {"shape": [8, 97]},
        {"shape": [-8, -96]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [8.0, 96]},
        {"shape": "8,96"},
        {"shape": None},
        {"shape": [1] * 9},
        {"nested_offset": float("nan")},
        {"nested_offset": float("inf")},
        {"nested_offset": "1"},
        {"nested_offset": 10**400},
        {"nested_offset": 1e300},
        {"nested_offset": None},
        {"nested_blocksize": 0},
        {"nested_blocksize": 32},
        {"nested_dtype": "int8"},
    ],
)
def test_hostile_json(changes):
    _, stats = packed_state(shape=(96, 512))
    with pytest.raises(CheckpointError):
        F.QuantState.from_dict(with_json(stats, **changes), device="cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("absmax", torch.zeros(11, dtype=torch.uint8)),
        ("absmax", torch.zeros(12)),
        ("absmax", "twelve"),
        ("quant_map", torch.zeros(16)),
        ("quant_map", torch.full((16,), float("nan"))),
        ("quant_map", torch.zeros(15)),
        ("nested_absmax", torch.zeros(2)),
        ("nested_quant_map", torch.zeros(255)),
        ("nested_quant_map", torch.full((256,), float("nan"))),
        ("absmax", torch.zeros(12, dtype=torch.uint8).to_sparse()),
        ("absmax", torch.zeros(12, dtype=torch.uint8, device="meta")),
        (7, torch.zeros(12)),
        (KEY, torch.tensor(list(b"not json"), dtype=torch.uint8)),
        (KEY, torch.tensor(list(b"[1, 2]"), dtype=torch.uint8)),
        (KEY, torch.tensor(list(b"[" * 5000), dtype=torch.uint8)),
        (KEY, torch.zeros(1 << 20, dtype=torch.uint8)),
        (KEY, torch.zeros(8)),
    ],
)
def test_hostile_tensors(key, value):
    _, stats = packed_state()
    with pytest.raises(CheckpointError):
        F.QuantState.from_dict({**stats, key: value}, device="cpu")


@pytest.mark.parametrize("key", ["absmax", "quant_map", "nested_quant_map", KEY])
def test_missing_key(key):
    _, stats = packed_state()
    del stats[key]
    with pytest.raises(CheckpointError, match=r"missing|float32"):
        F.QuantState.from_dict(stats, device="cpu")


def test_two_packed_states():
    _, stats = packed_state()
    with pytest.raises(CheckpointError, match="2 packed"):
        F.QuantState.from_dict({**stats, KEY.replace("nf4", "fp4"): stats[KEY]}, device="cpu")


def test_codes_must_fit_the_shape():
    codes, stats = packed_state()
    with pytest.raises(BitsAnywhereError, match="383 bytes"):
        nn.Params4bit.from_prequantized(codes[:-1], stats, device="cpu")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
             "nested_offset", "quant_map", "absmax"]
        ),
        json_values,
        min_size=1,
        max_size=3,
    )
)  # fmt: skip
def test_fuzzed_json_raises_only_checkpoint_errors(changes):
    codes, stats = packed_state()
    try:
        param = nn.Params4bit.from_prequantized(codes, with_json(stats, **changes), device="cpu")
    except BitsAnywhereError:
        return
    F.dequantize_4bit(param.data, param.quant_state)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_fuzzed_bytes_raise_only_checkpoint_errors(data):
    _, stats = packed_state()
    stats[KEY] = torch.tensor(list(data), dtype=torch.uint8)
    with pytest.raises(CheckpointError):
        F.QuantState.from_dict(stats, device="cpu")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["absmax", "quant_map", "nested_absmax", "nested_quant_map"]),
        st.tuples(
            st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.int64]),
            st.lists(st.integers(0, 20), max_size=3),
        ),
        min_size=1,
    )
)
def test_fuzzed_tensors_raise_only_checkpoint_errors(replacements):
    codes, stats = packed_state()
    for key, (dtype, shape) in replacements.items():
        stats[key] = torch.ones(shape, dtype=dtype)
    try:
        state = F.QuantState.from_dict(stats, device="cpu")
    except CheckpointError:
        return
    assert F.dequantize_4bit(codes, state).shape == (8, 96)


def test_unpack_accepts_what_json_allows():
    content = json.loads('{"a": [1, 2.5, null], "b": "x"}')
    assert F.unpack_tensor_to_dict(F.pack_dict_to_tensor(content)) == content
