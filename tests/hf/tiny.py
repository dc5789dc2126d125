"""A tiny Llama with random weights, its tokenizer and its data, made on the spot.

No dimension is a multiple of the blocksize, so that blocks of a weight span its rows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = "all dogs bark no cats are dogs therefore cats never bark"


def save_float_model(folder: Path) -> None:
    """Writes the bf16 model and its tokenizer to ``folder``."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96, intermediate_size=200, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=40, max_position_embeddings=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(set(TEXT.split()))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def load_4bit(folder: Path, **options: object) -> LlamaForCausalLM:
    """The model of ``folder`` quantized to NF4 with nested statistics, on the CPU."""
    settings = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
    return LlamaForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(**(settings | options)),
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )


def load_8bit(folder: Path, **options: object) -> LlamaForCausalLM:
    """The model of ``folder`` quantized to int8, on the CPU."""
    return LlamaForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True, **options),
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )


def batch() -> dict[str, torch.Tensor]:
    """One training example."""
    ids = tokenizer()(TEXT, return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def linears(model: torch.nn.Module, kind: str = "Linear4bit") -> dict[str, torch.nn.Module]:
    """The quantized layers by name; peft's wrappers around them have the same class name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__ == kind
    }


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    """|given - wanted| / |wanted| in float64."""
    given, wanted = given.detach().double(), wanted.detach().double()
    return float((given - wanted).norm() / wanted.norm())
