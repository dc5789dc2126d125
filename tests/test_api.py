"""Every name of bitsandbytes 0.50.2 exists with the same signature."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bitsanywhere
from bitsanywhere.integrations.finder import RENAMED

API = json.loads((Path(__file__).parent / "golden" / "api.json").read_text())
SYMBOLS = [
    pytest.param(module, name, facts, id=f"{module}.{name}")
    for module, names in API.items()
    if module != "torch.ops"
    for name, facts in names.items()
]
OPS = {name: schema for name, schema in API["torch.ops"].items() if not name.endswith(".out")}


def parameters(signature: str) -> list[tuple[str, str | None]]:
    """(name, default) of each parameter of a signature in text, annotations left out."""
    text = re.sub(r"<[^>]*>", "None", signature)
    (function,) = ast.parse(f"def f{text}: ...").body
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = list(zip(positional, defaults))
    if arguments.vararg is not None:
        pairs.append((arguments.vararg, None))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg is not None:
        pairs.append((arguments.kwarg, None))
    return [(arg.arg, default and ast.unparse(default)) for arg, default in pairs]


def listed(signature: inspect.Signature) -> list[tuple[str, str | None]]:
    return [
        (
            p.name,
            None if p.default is p.empty else ast.unparse(ast.parse(repr(p.default), mode="eval")),
        )
        for p in signature.parameters.values()
    ]


def ours(module: str):
    return importlib.import_module(
        RENAMED.get(module, module.replace("bitsandbytes", "bitsanywhere"))
    )


@pytest.mark.parametrize(("module", "name", "facts"), SYMBOLS)
def test_signature(module, name, facts):
    found = getattr(ours(module), name)
    if facts["kind"] == "function":
        assert listed(inspect.signature(found)) == parameters(facts["signature"])
    elif facts["kind"] == "class":
        assert inspect.isclass(found)
        for method, signature in facts["methods"].items():
            function = inspect.unwrap(getattr(found, method))
            got = listed(inspect.signature(function))
            if inspect.ismethod(function):
                got = [("cls", None), *got]
            assert got == parameters(signature), method
    else:
        assert type(found).__name__ == facts["type"]


@pytest.mark.parametrize("name", OPS)
def test_op_schema(name):
    op = getattr(torch.ops.bitsanywhere, name.split("::")[1]).default
    assert str(op._schema) == OPS[name].replace("bitsandbytes::", "bitsanywhere::")


@pytest.mark.parametrize("name", [n for n in API["torch.ops"] if n.endswith(".out")])
def test_out_overload(name):
    op = getattr(torch.ops.bitsanywhere, name.split("::")[1].removesuffix(".out")).out
    peer = re.findall(
        r"(?:Tensor|int|str|ScalarType)\S*(?:\([^)]*\))? (\w+)", API["torch.ops"][name]
    )
    assert [argument.name for argument in op._schema.arguments] == peer
    assert op._schema.arguments[-1].alias_info.is_write
    assert op._schema.returns == []


def test_params4bit_dict_is_what_frameworks_pass_on():
    param = bitsanywhere.nn.Params4bit(torch.zeros(2, 64))
    assert set(param.__dict__) == {
        "blocksize", "compress_statistics", "quant_type", "quant_state", "quant_storage",
        "bnb_quantized", "module",
    }  # fmt: skip


def test_import_is_light():
    """No compiler, CUDA module or environment variable is touched by the import."""
    script = (
        "import os, sys, torch; before = dict(os.environ); had = set(sys.modules);"
        "import bitsanywhere; assert dict(os.environ) == before;"
        "new = {m.split('.')[0] for m in set(sys.modules) - had};"
        "heavy = new & {'numba', 'llvmlite', 'cuda', 'transformers', 'bitsandbytes', 'scipy'};"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
