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


def int8_layer(library: Any, weight: torch.Tensor) -> Any:
    """A layer of one library that holds ``weight`` in int8."""
    layer = library.nn.Linear8bitLt(K, N, bias=True, has_fp16_weights=False, threshold=6.0)
    with torch.no_grad():
        layer.weight.data, layer.bias.data = weight.clone(), torch.ones(N)
    return layer.to("cpu").eval()


def exchange_int8(writer: Any, reader: Any, weight: torch.Tensor, work: Path) -> str:
    """ "ok" if the reader's layer holds and computes what the writer's did, or what differs."""
    layer, other = int8_layer(writer, weight), int8_layer(reader, torch.zeros(N, K))
    wanted, kinds = dict(layer.state_dict()), int8_layer(reader, weight).state_dict()
    if {k: v.dtype for k, v in wanted.items()} != {k: v.dtype for k, v in kinds.items()}:
        return f"keys or dtypes differ: {sorted(wanted)}, {sorted(kinds)}"
    if not all(torch.equal(kinds[key], value) for key, value in wanted.items()):
        return "the libraries quantize differently"
    save_file(wanted, work / "layer.safetensors")
    tensors = load_file(work / "layer.safetensors")
    other.load_state_dict(tensors)
    x = torch.randn(5, K, dtype=torch.float16)
    x[2, 7] = 9.0
    as_transformers = int8_layer(reader, torch.zeros(N, K))
    as_transformers.weight = reader.nn.Int8Params(
        tensors["weight"], requires_grad=False, has_fp16_weights=False, SCB=tensors["SCB"]
    ).to("cpu")
    given = layer(x).float()
    for loaded in (other, as_transformers):
        for key, value in loaded.state_dict().items():
            if not torch.equal(value, wanted[key]):
                return f"{key} differs"
        if (loaded(x).float() - given).norm() > 2e-3 * given.norm():
            return "products differ"
    return "ok"


def train_int8(library: Any, weight: torch.Tensor, floats: bool) -> list[torch.Tensor]:
    """Output and gradients of input, bias and float weight of one step in training mode."""
    layer = library.nn.Linear8bitLt(K, N, has_fp16_weights=floats, threshold=6.0)
    with torch.no_grad():
        layer.weight.data, layer.bias.data = weight.clone(), torch.ones(N)
    layer = layer.to("cpu").train()
    x = torch.linspace(-3, 8, 5 * K).view(5, K).requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    found = [out.detach(), x.grad, layer.bias.grad]
    return [*found, layer.weight.grad] if floats else found


def main(work: Path) -> None:
    """Every setting, in both directions."""
    results = {}
    libraries = {"bitsandbytes": bitsandbytes, "bitsanywhere": bitsanywhere}
    weight = torch.randn(N, K).half().float()
    for floats in (False, True):
        pairs = zip(*(train_int8(library, weight, floats) for library in libraries.values()))
        worst = max(float((one - two).norm() / two.norm()) for one, two in pairs)
        results[f"training {'float' if floats else 'int8'}"] = "ok" if worst < 1e-5 else str(worst)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.manual_seed(1)
        weight = torch.randn(N, K).to(dtype)
        for writer, reader in itertools.permutations(libraries):
            results[f"{reader} int8 {str(dtype)[6:]}"] = exchange_int8(
                libraries[writer], libraries[reader], weight, work
            )
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
