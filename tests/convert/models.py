"""Tiny models with random weights, saved as people publish them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitsanywhere.convert.options import Options

VOCABULARY = 40


@dataclass(frozen=True)
class Case:
    """A model and how it is converted.

    ``save`` goes to save_pretrained. ``counts`` are the tensors that are quantized, and those that
    are kept as fused experts.
    """

    model: str
    options: Options
    dtype: torch.dtype = torch.bfloat16
    changes: dict[str, Any] = field(default_factory=dict)
    save: dict[str, Any] = field(default_factory=dict)
    counts: tuple[int, int] = (14, 0)


CASES = {
    "llama": Case("llama", Options(double_quant=True)),
    "llama_odd": Case(
        "llama", Options(double_quant=True), changes={"hidden_size": 96, "intermediate_size": 200}
    ),
    "llama_sharded": Case(
        "llama", Options(double_quant=True, compute_dtype="float32"),
        save={"max_shard_size": "100KB"},
    ),
    "llama_tied_fp16_fp4": Case(
        "llama", Options("fp4"), torch.float16, {"tie_word_embeddings": True}
    ),
    "llama_fp32": Case("llama", Options(), torch.float32),
    "llama_bias_int8": Case("llama", Options("int8"), changes={"attention_bias": True}),
    "llama_skip": Case(
        "llama", Options(skip=("o_proj", "model.layers.0.mlp")), counts=(9, 0)
    ),
    "mixtral": Case("mixtral", Options(double_quant=True), counts=(8, 12)),
    "mixtral_int8": Case("mixtral", Options("int8"), counts=(8, 12)),
    "gpt2": Case("gpt2", Options(double_quant=True), torch.float32, counts=(8, 0)),
    # transformers renames its tensors, and splits mlp.weights_in into two layers.
    "dinov2": Case("dinov2", Options(double_quant=True), counts=(10, 0)),
    "gpt2_int8": Case("gpt2", Options("int8"), counts=(8, 0)),
}  # fmt: skip


def save(case: Case, folder: Path) -> Path:
    """Writes the float model."""
    import transformers as hf

    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
    sizes = {
        "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    common = {"vocab_size": VOCABULARY, **ends} | (sizes if case.model != "gpt2" else {})
    common |= case.changes
    if case.model == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**common))
    elif case.model == "mixtral":
        model = hf.MixtralForCausalLM(
            hf.MixtralConfig(num_local_experts=2, num_experts_per_tok=1, **common)
        )
    elif case.model == "dinov2":
        model = hf.Dinov2Model(
            hf.Dinov2Config(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=28,
                use_swiglu_ffn=True,
            )
        )
    else:
        model = hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_embd=128,
                n_layer=2,
                n_head=4,
                n_positions=128,
                attn_pdrop=0.0,
                embd_pdrop=0.0,
                resid_pdrop=0.0,
                **common,
            )
        )
    model.to(case.dtype).save_pretrained(folder, **case.save)
    return folder
