"""A small Llama with random weights, and a GGUF file of it as llama.cpp would lay it out."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bitsanywhere.convert.gguf_model import LAYER_NAMES, TOP_NAMES

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER, LAYERS = 3, 1, 8, 24, 40, 2


def byte_tokens() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE, two merged tokens, then control tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*sorted(ByteLevel.alphabet()), "he", "Ġhe", "<|start|>", "<|end|>"]


def small_model(tied: bool = True) -> LlamaForCausalLM:
    """The model in float32, its weights exact in bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(byte_tokens()), hidden_size=HIDDEN, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM, max_position_embeddings=96, rope_theta=5000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).mul_(0.2).to(torch.bfloat16).float())
    return model.eval()


def permute(weight: torch.Tensor, heads: int) -> np.ndarray:
    """llama.cpp's row order: of each head, row j * half + i goes to row 2 i + j."""
    rows = weight.shape[0] // heads
    order = [
        h * rows + j * rows // 2 + i for h in range(heads) for i in range(rows // 2) for j in (0, 1)
    ]
    return weight[order].numpy()


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    pre_tokenizer: str = "smollm",
    extra: str | None = None,
) -> Path:
    """Writes the file; ``extra`` names one more tensor, of zeros."""
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
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    writer.add_token_merges(["h e", "Ġ he"])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_pad_token_id(len(tokens) - 1)
    writer.add_chat_template(
        "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
    )
    for name, weight in gguf_weights(model).items():
        writer.add_tensor(name, weight)
    if extra is not None:
        writer.add_tensor(extra, np.zeros(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_weights(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights under the names and in the row order of GGUF."""
    layer = {theirs: ours for ours, theirs in LAYER_NAMES.items()}
    top = {theirs: ours for ours, theirs in TOP_NAMES.items()}
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = weight.numpy()
        if name.endswith("q_proj.weight"):
            values = permute(weight, HEADS)
        if name.endswith("k_proj.weight"):
            values = permute(weight, KV_HEADS)
        if name in top:
            stored = top[name]
        else:
            _, _, index, rest = name.split(".", 3)
            stored = f"blk.{index}.{layer[rest.removesuffix('.weight')]}.weight"
        weights[stored] = np.ascontiguousarray(values)
    return weights
