"""Checkpoints between stock bitsandbytes and this library, in one process, through safetensors.

    BITSANYWHERE_BACKEND=0 python exchange.py WORK_FOLDER

WORK_FOLDER/results.json maps "reader quant_type nested storage" to "ok" or what differs.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from safetensors.torch import load_file, save_file

import bitsanywhere

N, K = 72, 128
STORAGES = ("uint8", "bfloat16", "float16", "float32")


def layer_of(library: Any, weight: torch.Tensor, settings: dict[str, Any]) -> Any:
    """A quantized layer of one library."""
    layer = library.nn.Linear4bit(K, N, bias=False, compute_dtype=torch.float32, **settings)
    layer.weight = library.nn.Params4bit(weight.clone(), **settings, module=layer)
    return layer.to("cpu")


def read(library: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """A weight from a checkpoint, the way transformers does it."""
    stats = {key: value for key, value in tensors.items() if key != "weight"}
    return library.nn.Params4bit.from_prequantized(tensors["weight"], stats, device="cpu")


def compare(written: Any, given: Any, wanted: torch.Tensor, library: Any) -> str:
    """ "ok", or the first thing that is not the same."""
    if given.dtype != written.dtype:
        return f"storage is {given.dtype}"
    if not torch.equal(given.data.view(torch.uint8), written.data.view(torch.uint8)):
        return "codes differ"
    one, two = written.quant_state.as_dict(), given.quant_state.as_dict()
    if one.keys() != two.keys():
        return f"keys differ: {sorted(one.keys() ^ two.keys())}"
    for key, value in one.items():
        same = torch.equal(value, two[key]) if torch.is_tensor(value) else value == two[key]
        if not same:
            return f"{key}: {value} and {two[key]}"
    restored = library.functional.dequantize_4bit(given.data, given.quant_state)
    return "ok" if torch.equal(restored, wanted) else "dequantized values differ"


def main(work: Path) -> None:
    """Every setting, in both directions."""
    results = {}
    libraries = {"bitsandbytes": bitsandbytes, "bitsanywhere": bitsanywhere}
    torch.manual_seed(0)
    weight = torch.randn(N, K, dtype=torch.bfloat16)
    for quant_type, nested, storage in itertools.product(("nf4", "fp4"), (False, True), STORAGES):
        settings = {
            "quant_type": quant_type,
            "compress_statistics": nested,
            "quant_storage": getattr(torch, storage),
        }
        for writer, reader in itertools.permutations(libraries):
            layer = layer_of(libraries[writer], weight, settings)
            wanted = libraries[writer].functional.dequantize_4bit(
                layer.weight.data, layer.weight.quant_state
            )
            save_file(layer.state_dict(), work / "layer.safetensors")
            given = read(libraries[reader], load_file(work / "layer.safetensors"))
            results[f"{reader} {quant_type} {'nested' if nested else 'plain'} {storage}"] = compare(
                layer.weight, given, wanted, libraries[reader]
            )
    (work / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
