"""What is read from a small GGUF file that the test writes, and which files are refused."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("transformers")

from bitsanywhere.convert.gguf_model import GgufModel, hf_name
from bitsanywhere.convert.sources import open_source
from bitsanywhere.errors import CheckpointError, MissingPackageError
from tests.convert import gguf_files as files


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model = files.small_model()
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return model, open_source(files.write_gguf(path, model))


def test_weights_come_back_exactly_whatever_rows_are_asked_for(written):
    model, source = written
    weights = {n: w for n, w in model.state_dict().items() if n != "lm_head.weight"}
    assert source.tensors.keys() == weights.keys()
    for name, weight in weights.items():
        stored = source.tensors[name]
        assert (stored.shape, stored.file_bytes) == (tuple(weight.shape), weight.numel() * 4)
        matrix = weight.reshape(stored.rows, stored.columns)
        last = stored.rows - 1
        for start, stop in ((0, last + 1), (min(3, last), last + 1), (last // 2, last + 1)):
            assert torch.equal(source.read(name, start, stop), matrix[start:stop]), name


def test_config_keeps_the_files_sizes(written):
    config = written[1].config()
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (3, 1)
    assert (config["hidden_size"], config["intermediate_size"]) == (files.HIDDEN, files.INNER)
    assert config["tie_word_embeddings"] is True
    assert config["rope_theta"] == 5000.0
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
    assert config["vocab_size"] == len(files.byte_tokens())


def test_tokenizer_and_chat_template(written, tmp_path):
    from transformers import AutoTokenizer

    written[1].write_companions(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "he said he had 1234 coins.\n<|end|>"
    pieces = tokenizer.tokenize(text)
    assert (pieces[0], pieces[-1]) == ("he", "<|end|>")
    assert "Ġhe" in pieces
    assert [p for p in pieces if p.isdigit()] == list("1234")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|end|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|start|>hi<|end|>"


def test_an_output_of_its_own_is_read(tmp_path):
    model = files.small_model(tied=False)
    source = GgufModel(files.write_gguf(tmp_path / "untied.gguf", model))
    assert source.config()["tie_word_embeddings"] is False
    name = "lm_head.weight"
    assert torch.equal(source.read(name, 0, 5), model.state_dict()[name][:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "falcon"}, "'falcon'"),
        ({"extra": "rope_freqs.weight"}, "rope_freqs"),
        ({"extra": "blk.0.attn_q.bias"}, "attn_q.bias"),
        ({"extra": "blk.9.attn_q.weight"}, "which 3 heads do not divide"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    path = files.write_gguf(tmp_path / "other.gguf", files.small_model(), **change)
    with pytest.raises(CheckpointError, match=message):
        GgufModel(path)


def test_other_tokenizers_are_refused(tmp_path):
    path = files.write_gguf(tmp_path / "x.gguf", files.small_model(), pre_tokenizer="llama-bpe")
    with pytest.raises(CheckpointError, match="llama-bpe"):
        GgufModel(path).tokenizer()


@pytest.mark.parametrize("size", [0, 3, 200, 20_000])
def test_cut_and_foreign_files_are_refused(tmp_path, written, size):
    whole = written[1].path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="not a readable GGUF"):
        GgufModel(tmp_path / "cut.gguf")
    (tmp_path / "text.gguf").write_text("no model at all, only some words")
    with pytest.raises(CheckpointError, match="not a readable GGUF"):
        GgufModel(tmp_path / "text.gguf")


def test_a_missing_package_names_its_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match="pip install 'gguf"):
        GgufModel(tmp_path / "any.gguf")


def test_names():
    assert hf_name("blk.11.ffn_up.weight") == "model.layers.11.mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match="ffn_gate_exps"):
        hf_name("blk.1.ffn_gate_exps.weight")
