"""Headers: what we write safetensors reads, and nothing that is not sound is read."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file

from bitsanywhere.convert.safetensors_file import CODES, Entry, encode_header, read_header
from bitsanywhere.errors import CheckpointError


def sound(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "sound.safetensors")
    return tmp_path / "sound.safetensors"


def test_reads_what_safetensors_writes(tmp_path):
    entries, data = read_header(sound(tmp_path))
    assert entries == [Entry("a", "F32", (2, 3), 0, 24), Entry("b", "BF16", (5,), 24, 34)]
    raw = sound(tmp_path).read_bytes()
    assert raw[data : data + 24] == torch.arange(6.0).numpy().tobytes()


def test_the_bytes_of_a_header():
    text = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    assert len(text) % 8 == 4
    entry = Entry("w", "U8", (3,), 0, 3)
    assert encode_header([entry]) == (len(text) + 4).to_bytes(8, "little") + text + b"    "
    assert encode_header([entry], room=256) == (248).to_bytes(8, "little") + text.ljust(248)
    assert len(encode_header([entry], room=8)) == len(text) + 12


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(names, st.tuples(st.sampled_from(list(CODES)), shapes), max_size=6))
def test_safetensors_reads_what_we_write(tmp_path_factory, wanted):
    entries, data = [], b""
    for name, (dtype, shape) in sorted(wanted.items(), key=lambda item: -item[1][0].itemsize):
        size = dtype.itemsize * torch.Size(shape).numel()
        entries.append(Entry(name, CODES[dtype], shape, len(data), len(data) + size))
        data += bytes(range(size % 256)).ljust(size, b"\1") if dtype != torch.bool else bytes(size)
    content = encode_header(entries, room=600) + data
    tensors = load(content)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == wanted
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    path.write_bytes(content)
    back, start = read_header(path)
    assert sorted(back, key=lambda e: e.name) == sorted(entries, key=lambda e: e.name)
    assert content[start:] == data


def described(**changes):
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes
    return {"a": {key: value for key, value in entry.items() if value is not None}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (described(dtype="F33"), "unknown dtype 'F33'"),
        (described(dtype=4), "unknown dtype"),
        (described(dtype=None), "not described"),
        (described(shape=[2, -3]), "shape"),
        (described(shape=[2.0, 3]), "shape"),
        (described(shape=[True, 6]), "shape"),
        (described(shape="23"), "shape"),
        (described(shape=[1] * 17), "shape"),
        (described(shape=[1 << 59] * 8), "needs"),
        (described(shape=[2, 4]), "needs 32 bytes"),
        (described(data_offsets=[0, 24, 24]), "data_offsets"),
        (described(data_offsets=[24, 0]), "needs 24 bytes"),
        (described(data_offsets=[8, 32]), "gap"),
        (described() | {"b": described()["a"]}, "overlaps"),
        ({"a": {"dtype": "U8", "shape": [23], "data_offsets": [0, 23]}}, "its data 24"),
        ({"a": {"dtype": "U8", "shape": [25], "data_offsets": [0, 25]}}, "its data 24"),
        ({"a": None}, "not described"),
        ([1, 2], "not a JSON object"),
    ],
)
def test_unsound_headers_are_refused(tmp_path, header, message):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1\0\0",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        (2).to_bytes(8, "little") + b"\xff\xfe",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (5000).to_bytes(8, "little") + b'{"a":' + b"9" * 4994 + b"}",
        (24).to_bytes(8, "little") + b'{"a":{"x":1},"a":{"x":1}',
        (25).to_bytes(8, "little") + b'{"a":{"x":1},"a":{"x":1}}',
    ],
)
def test_broken_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        read_header(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "none.safetensors")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 200), st.integers(0, 255), st.booleans())
def test_a_changed_byte_is_refused_or_harmless(tmp_path_factory, position, value, cut):
    """Whatever we accept, safetensors accepts too, with the same content."""
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(sound(folder).read_bytes())
    position %= len(content)
    content[position] = value
    path = folder / "changed.safetensors"
    path.write_bytes(bytes(content[:-1] if cut else content))
    try:
        entries, _ = read_header(path)
    except CheckpointError:
        return
    tensors = load_file(path)
    assert {e.name: e.shape for e in entries} == {n: tuple(t.shape) for n, t in tensors.items()}
