"""GGUF files of Llama-like models: their weights, config and tokenizer as Hugging Face has them.

Weights are dequantized with the `gguf` package. GGUF stores the rows of the query and key
projections in the order that llama.cpp's rotary embedding wants (pairs side by side); Hugging
Face's wants the two halves of each head apart, so those rows are put back. Tokenizer, chat template
and generation settings come from the file's metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bitsanywhere.convert.sources import Stored, identity_of, read_bytes
from bitsanywhere.errors import CheckpointError, MissingPackageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# How these pre-tokenizers cut text is known; whether numbers are cut into single digits first.
DIGITS_APART = {"smollm": True, "gpt-2": False}
FOLDER_INSTEAD = "Give the Hugging Face folder of this model instead."


@dataclass(frozen=True)
class _Place:
    """Where the file holds a tensor; ``heads`` if its rows are to be put back in order."""

    kind: Any
    position: int
    row_bytes: int
    heads: int


class GgufModel:
    """A GGUF file of architecture "llama"; a Source whose tensors are float32.

    Raises:
        MissingPackageError: if the package `gguf` is not installed.
        CheckpointError: if the file is not sound, or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise MissingPackageError(
                "the package gguf is not installed",
                "It reads and dequantizes GGUF files.",
                "pip install 'gguf>=0.17'",
            ) from error
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
            raise CheckpointError(f"{path} is not a readable GGUF file: {error}") from error
        architecture = self._value("general.architecture")
        if architecture != "llama":
            raise CheckpointError(
                f"{path} holds a model of architecture {str(architecture)[:100]!r}",
                "Only 'llama' is converted.",
                FOLDER_INSTEAD,
            )
        self.heads = self._count("attention.head_count")
        self.kv_heads = self._count("attention.head_count_kv", self.heads)
        self._places: dict[str, _Place] = {}
        self.tensors: dict[str, Stored] = {}
        for tensor in self._reader.tensors:
            self._add(tensor)

    def _add(self, tensor: Any) -> None:
        name = hf_name(tensor.name)
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(tensor.name.split(".")[-2], 0)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        stored = Stored(shape, torch.float32, int(tensor.n_bytes))
        if name in self.tensors or stored.rows == 0 or stored.file_bytes % stored.rows:
            raise CheckpointError(f"{self.path} describes {tensor.name[:100]!r} wrongly or twice")
        if heads and (len(shape) != 2 or shape[0] % (2 * heads)):
            raise CheckpointError(
                f"{tensor.name[:100]!r} has shape {shape}, which {heads} heads do not divide"
            )
        row_bytes = stored.file_bytes // stored.rows
        self._places[name] = _Place(tensor.tensor_type, int(tensor.data_offset), row_bytes, heads)
        self.tensors[name] = stored

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """See Source."""
        place, stored = self._places[name], self.tensors[name]
        if not place.heads:
            return torch.from_numpy(self._file_rows(name, start, stop))
        head = stored.rows // place.heads
        first, last = start // head, -(-stop // head)
        rows = unpermute(self._file_rows(name, first * head, last * head), last - first)
        return torch.from_numpy(np.ascontiguousarray(rows[start - first * head :][: stop - start]))

    def _file_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Dequantized rows in the file's order, float32."""
        from gguf.quants import dequantize

        place = self._places[name]
        count = (stop - start) * place.row_bytes
        data = read_bytes(self.path, place.position + start * place.row_bytes, count).numpy()
        try:
            values = dequantize(data.reshape(stop - start, place.row_bytes), place.kind)
        except NotImplementedError as error:
            raise CheckpointError(f"{name} cannot be dequantized: {error}") from error
        return values.astype(np.float32, copy=False).reshape(stop - start, -1)

    def _value(self, key: str, default: Any = None) -> Any:
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def _count(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 in the model's own part of the metadata."""
        value = self._value(f"llama.{key}", default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.path} says llama.{key} is {str(value)[:100]}")
        return value

    def config(self) -> dict[str, Any]:
        """The `config.json` of a LlamaForCausalLM with the sizes the metadata states."""
        if "model.embed_tokens.weight" not in self.tensors:
            raise CheckpointError(f"{self.path} holds no token_embd.weight")
        hidden = self._count("embedding_length")
        epsilon = self._value("llama.attention.layer_norm_rms_epsilon", 1e-5)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": self._count("block_count"),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self._count("rope.dimension_count", hidden // self.heads),
            "max_position_embeddings": self._count("context_length"),
            "rms_norm_eps": round(float(epsilon), 9),
            "rope_theta": float(self._value("llama.rope.freq_base", 10000.0)),
            "vocab_size": self.tensors["model.embed_tokens.weight"].shape[0],
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "attention_bias": False,
            "mlp_bias": False,
            **self.generation_config(),
        }

    def generation_config(self) -> dict[str, Any]:
        """Indices of the special tokens, for `generation_config.json`."""
        roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
        return {
            f"{role}_token_id": self._value(f"tokenizer.ggml.{key}_token_id")
            for role, key in roles.items()
        }

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The byte-level BPE tokenizer, with chat template, that the metadata describes.

        Raises:
            CheckpointError: if it is of another kind, or its lists are not sound.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        kind, pre = self._value("tokenizer.ggml.model"), self._value("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in DIGITS_APART:
            raise CheckpointError(
                f"the file's tokenizer is {str(kind)[:40]!r} with {str(pre)[:40]!r} before it",
                f"Byte-level BPE ('gpt2') with one of {', '.join(DIGITS_APART)} is understood.",
                FOLDER_INSTEAD,
            )
        tokens: list[str] = self._value("tokenizer.ggml.tokens", [])
        merges = [tuple(m.split(" ", 1)) for m in self._value("tokenizer.ggml.merges", [])]
        kinds = self._value("tokenizer.ggml.token_type", [])
        control = [token for token, kind in zip(tokens, kinds) if kind == 3]
        special = {}
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
            index = self._value(f"tokenizer.ggml.{key}_token_id")
            if index is not None and 0 <= index < len(tokens):
                special[f"{role}_token"] = tokens[index]
        try:
            backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        except Exception as error:
            raise CheckpointError(f"the file's tokenizer is not sound: {error}") from error
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_APART[pre] else []
        backend.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_max_length=self._count("context_length"),
            **special,
        )
        tokenizer.chat_template = self._value("tokenizer.chat_template")
        return tokenizer

    def write_companions(self, folder: Path) -> None:
        """See Source."""
        self.tokenizer().save_pretrained(folder)
        text = json.dumps(self.generation_config(), indent=2) + "\n"
        (folder / "generation_config.json").write_text(text, encoding="utf-8")

    def identity(self) -> list[Any]:
        """See Source."""
        return [identity_of(self.path)]


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor, e.g. blk.3.attn_q.weight -> model.layers.3...."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    raise CheckpointError(
        f"the GGUF file holds a tensor {name[:100]!r}",
        "A plain Llama model has none of that name.",
        FOLDER_INSTEAD,
    )


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of a query or key projection.

    `weight` is [heads * head_dim, in]; within a head, row 2i + j of the file is row
    j * head_dim / 2 + i of the Hugging Face model.
    """
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)
