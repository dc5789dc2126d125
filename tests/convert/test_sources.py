"""What a Hugging Face folder may and may not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bitsanywhere.convert.sources import HuggingFaceFolder, Stored, open_source
from bitsanywhere.errors import CheckpointError

TENSORS = {"a": torch.arange(30.0).view(2, 3, 5), "b": torch.tensor(7, dtype=torch.int64)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files and an index."""
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {name: f"{name}.safetensors" for name in TENSORS})
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_rows_are_read_as_they_are_stored(folder):
    source = open_source(folder)
    assert source.tensors == {
        "a": Stored((2, 3, 5), torch.float32, 120),
        "b": Stored((), torch.int64, 8),
    }
    assert (source.tensors["a"].rows, source.tensors["a"].columns) == (6, 5)
    assert torch.equal(source.read("a", 1, 5), TENSORS["a"].view(6, 5)[1:5])
    assert source.read("b", 0, 1).tolist() == [[7]]
    assert source.config() == {"model_type": "llama"}


def test_links_to_files_elsewhere_are_followed_as_caches_have_them(folder, tmp_path_factory):
    blob = tmp_path_factory.mktemp("blobs") / "0123abcd"
    (folder / "a.safetensors").rename(blob)
    (folder / "a.safetensors").symlink_to(blob)
    assert torch.equal(open_source(folder).read("a", 0, 1)[0], TENSORS["a"][0, 0])


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "a\\b.safetensors", 5, None],
)
def test_names_that_lead_out_of_the_folder_are_refused(folder, name):
    write_index(folder, {"a": name, "b": "b.safetensors"})
    with pytest.raises(CheckpointError, match=r"names"):
        HuggingFaceFolder(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "no weight_map"),
        ([1], "no weight_map"),
        ({"a": "a.safetensors", "b": "c.safetensors"}, "no safetensors file here"),
        ({"a": "a.safetensors", "b": "config.json"}, "no safetensors file here"),
    ],
)
def test_broken_indices_are_refused(folder, weight_map, message):
    write_index(folder, weight_map)
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceFolder(folder)


def test_a_tensor_in_two_files_is_refused(folder):
    save_file({"a": TENSORS["a"]}, folder / "b.safetensors")
    with pytest.raises(CheckpointError, match="in two files"):
        HuggingFaceFolder(folder)


def test_pickled_weights_are_refused_with_a_way_out(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="save_pretrained") as caught:
        open_source(tmp_path)
    assert "unpickled, which can run code" in str(caught.value)


@pytest.mark.parametrize("name", ["", "model.bin", "nothing"])
def test_what_is_no_model_is_refused(tmp_path, name):
    (tmp_path / "model.bin").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        open_source(tmp_path / name if name else tmp_path / "empty")


def test_fp8_weights_are_refused(tmp_path):
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="stored as F8_E4M3") as caught:
        HuggingFaceFolder(tmp_path)
    assert "F32, F16 or BF16" in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_broken_configs_are_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        HuggingFaceFolder(folder).config()


def test_a_file_that_shrinks_is_noticed(folder):
    source = HuggingFaceFolder(folder)
    whole = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="shorter"):
        source.read("a", 0, 6)


def test_identity_changes_with_the_files(folder):
    source = HuggingFaceFolder(folder)
    before = source.identity()
    assert before == HuggingFaceFolder(folder).identity()
    (folder / "config.json").write_text('{"model_type": "other"}')
    assert source.identity() != before
