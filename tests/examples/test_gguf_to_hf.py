"""Conversion of a small GGUF file that the test writes: weights, tokenizer, whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

from qlora import gguf_to_hf  # noqa: E402
from qlora.errors import DemoError  # noqa: E402

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS = 3, 1, 8, 24, 40, 2


def byte_tokens() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, two merged tokens, then control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*sorted(ByteLevel.alphabet()), "he", "Ġhe", "<|start|>", "<|end|>"]


def permute(weight: torch.Tensor, heads: int) -> np.ndarray:
    """llama.cpp's row order: of each head, row j * half + i goes to row 2 i + j."""
    rows = weight.shape[0] // heads
    order = [
        h * rows + j * rows // 2 + i for h in range(heads) for i in range(rows // 2) for j in (0, 1)
    ]
    return weight[order].numpy()


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(byte_tokens()), hidden_size=HIDDEN, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM, max_position_embeddings=96, rope_theta=5000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).mul_(0.2).to(torch.bfloat16).float())
    return model.eval()


def write_gguf(path: Path, model: torch.nn.Module, *, architecture: str = "llama") -> None:
    tokens = byte_tokens()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(96)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["h e", "Ġ he"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 1)
    writer.add_chat_template(
        "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
    )
    back = {v: k for k, v in gguf_to_hf._LAYER_NAMES.items()}
    for name, weight in model.model.state_dict().items():
        values = weight.numpy()
        if name.endswith("q_proj.weight"):
            values = permute(weight, HEADS)
        if name.endswith("k_proj.weight"):
            values = permute(weight, KV_HEADS)
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            stored = f"blk.{layer}.{back[rest.removesuffix('.weight')]}.weight"
        else:
            stored = {
                "embed_tokens.weight": "token_embd.weight",
                "norm.weight": "output_norm.weight",
            }[name]
        writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model = small_model()
    write_gguf(folder / "small.gguf", model)
    return model, gguf_to_hf.convert(folder / "small.gguf", folder / "small")


def test_weights_come_back_exactly_and_logits_agree(converted):
    model, folder = converted
    back = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name
    ids = torch.arange(37)[None] % len(byte_tokens())
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_weights_are_stored_as_bf16(converted):
    from safetensors.torch import load_file

    _, folder = converted
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_tokenizer_and_chat_template(converted):
    _, folder = converted
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "he said he had 1234 coins.\n<|end|>"
    pieces = tokenizer.tokenize(text)
    assert pieces[0] == "he"
    assert "Ġhe" in pieces
    assert pieces[-1] == "<|end|>"
    assert [p for p in pieces if p.isdigit()] == list("1234")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|end|>"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|start|>hi<|end|>"


def test_conversion_runs_once_and_again_for_another_file(converted, monkeypatch):
    _, folder = converted
    source = folder.parent / "small.gguf"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    gguf_to_hf.convert(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    monkeypatch.setattr(gguf_to_hf, "LAYOUT", gguf_to_hf.LAYOUT + 1)
    gguf_to_hf.convert(source, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns > before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["small", "small.gguf"]


@pytest.mark.parametrize("moment", [0, 3])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, moment):
    write_gguf(tmp_path / "small.gguf", small_model())
    left = [moment]

    def interrupt() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(gguf_to_hf, "checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gguf_to_hf.convert(tmp_path / "small.gguf", tmp_path / "small")
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


def test_wrong_files_are_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("no model at all, only some words")
    with pytest.raises(DemoError, match="not a readable GGUF"):
        gguf_to_hf.convert(tmp_path / "text.gguf", tmp_path / "out")
    write_gguf(tmp_path / "other.gguf", small_model(), architecture="falcon")
    with pytest.raises(DemoError, match="falcon"):
        gguf_to_hf.convert(tmp_path / "other.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(DemoError, match="pip install"):
        gguf_to_hf.find_gguf("a-package-that-nobody-has")


def test_unknown_tensors_are_refused():
    assert gguf_to_hf.hf_name("blk.11.ffn_up.weight") == "model.layers.11.mlp.up_proj.weight"
    with pytest.raises(DemoError, match="rope_freqs"):
        gguf_to_hf.hf_name("rope_freqs.weight")


def test_config_keeps_the_files_sizes(converted):
    _, folder = converted
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    assert (config["hidden_size"], config["intermediate_size"]) == (HIDDEN, INNER)
    assert config["tie_word_embeddings"] is True
    assert config["rope_theta"] == 5000.0
    assert config["rms_norm_eps"] == pytest.approx(1e-5)
