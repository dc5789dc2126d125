"""A GGUF file as a folder: the same weights, made once, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bitsanywhere.errors import CheckpointError
from bitsanywhere.validate.folder import model_folder
from bitsanywhere.validate.originals import Originals

pytest.importorskip("gguf")
pytest.importorskip("transformers")
from tests.convert import gguf_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return gguf_files.write_gguf(tmp_path / "small.gguf", gguf_files.small_model())


def test_a_folder_is_itself(tmp_path):
    assert model_folder(tmp_path, tmp_path / "out") == tmp_path


def test_gguf_weights_load_as_the_model_they_came_from(source, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(source, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given, wanted = loaded.state_dict(), gguf_files.small_model().state_dict()
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    assert AutoTokenizer.from_pretrained(folder)("he").input_ids


def test_it_is_made_once_and_again_when_the_file_changed(source, tmp_path):
    folder = model_folder(source, tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert model_folder(source, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    os.utime(source, ns=(1, 1))
    assert model_folder(source, tmp_path) != folder


def test_nothing_is_left_of_a_file_that_is_not_sound(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(CheckpointError):
        model_folder(source, out)
    assert list(out.iterdir()) == []


def test_linear_weights_are_all_but_embedding_and_output(source, tmp_path):
    names = Originals(model_folder(source, tmp_path)).linear_weights()
    assert len(names) == 7 * gguf_files.LAYERS
    assert not any("embed" in name or "lm_head" in name for name in names)
