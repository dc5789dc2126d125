"""Imports bitsandbytes in a fresh process and prints what it finds as one line of JSON.

python backend_probe.py ("cpu kernels"|"no cpu kernels"|"alone")
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

# rows are no whole number of blocks; the layer's are, or the peer's repacking fails
N, K = 71, 100
LAYER_N, LAYER_K = 72, 128
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def compare_ops() -> dict[str, str]:
    """Each op and dtype against our reference: exact, products to 2 % of their norm."""
    theirs = torch.ops.bitsandbytes
    from bitsanywhere.formats import codebook4, create_dynamic_map
    from bitsanywhere.ops.registry import OPS

    ours = {name: op.reference for name, op in OPS.items()}
    results: dict[str, str] = {}

    def put(name: str, given: Any, wanted: Any, exact: bool = True) -> None:
        pairs = zip(given, wanted) if isinstance(given, tuple) else [(given, wanted)]
        for one, two in pairs:
            same = one.dtype == two.dtype and one.shape == two.shape
            error = float((one.double() - two.double()).norm() / two.double().norm())
            ok = same and (torch.equal(one, two) if exact else error < 0.02)
            results[f"{name} {dtype}"] = "ok" if ok else f"{one.dtype} {one.shape} error {error}"

    for dtype in FLOATS:
        torch.manual_seed(0)
        weight, x = torch.randn(N, K, dtype=dtype), torch.randn(3, K, dtype=dtype)
        code8 = create_dynamic_map()
        args: tuple[Any, ...] = (weight, 64, "nf4", torch.uint8)
        put("quantize_4bit", theirs.quantize_4bit(*args), ours["quantize_4bit"](*args))
        codes, absmax = ours["quantize_4bit"](*args)
        args = (codes, absmax, 64, "nf4", (N, K), dtype)
        wanted = ours["dequantize_4bit"](*args)
        out = torch.full((N, K), float("nan"), dtype=dtype)
        put("dequantize_4bit", theirs.dequantize_4bit(*args), wanted)
        theirs.dequantize_4bit.out(*args, out)
        put("dequantize_4bit.out", out, wanted)
        args = (x, codes, (N, K), absmax, 64, "nf4", torch.randn(N, dtype=dtype))
        put("gemm_4bit", theirs.gemm_4bit(*args), ours["gemm_4bit"](*args), exact=False)
        args = (x, codes, (N, K), absmax, codebook4("nf4").tensor(), 64)
        wanted = ours["gemv_4bit"](*args)
        put("gemv_4bit", theirs.gemv_4bit(*args), wanted, exact=False)
        out = torch.full((3, N), float("nan"), dtype=dtype)
        theirs.gemv_4bit.out(*args, out)
        put("gemv_4bit.out", out, wanted, exact=False)
        args = (weight, code8, 256)
        put(
            "quantize_blockwise",
            theirs.quantize_blockwise(*args),
            ours["quantize_blockwise"](*args),
        )
        codes, absmax = ours["quantize_blockwise"](*args)
        args = (codes, absmax, code8, 256, dtype)
        wanted = ours["dequantize_blockwise"](*args)
        out = torch.full((N, K), float("nan"), dtype=dtype)
        put("dequantize_blockwise", theirs.dequantize_blockwise(*args), wanted)
        theirs.dequantize_blockwise.out(*args, out)
        put("dequantize_blockwise.out", out, wanted)
        compare_int8(theirs, ours, put, dtype)
    return results


def compare_int8(theirs: Any, ours: Any, put: Any, dtype: torch.dtype) -> None:
    """The ops of LLM.int8(); outlier columns are part of the results."""
    x, bias = torch.randn(5, K, dtype=dtype), torch.randn(N, dtype=dtype)
    x[1, 7], x[4, 30] = 9, -20
    codes, stats, _ = ours["int8_vectorwise_quant"](torch.randn(N, K), 0.0)
    for name in ("int8_vectorwise_quant", "int8_double_quant"):
        put(name, getattr(theirs, name)(x, 6.0), ours[name](x, 6.0))
    put(
        "int8_vectorwise_dequant",
        theirs.int8_vectorwise_dequant(codes, stats),
        ours["int8_vectorwise_dequant"](codes, stats),
    )
    found, scales, columns = ours["int8_vectorwise_quant"](x, 6.0)
    product = ours["int8_linear_matmul"](found, codes)
    put("int8_linear_matmul", theirs.int8_linear_matmul(found, codes), product)
    out = torch.full((5, N), -7, dtype=torch.int32)
    theirs.int8_linear_matmul.out(found, codes, out)
    put("int8_linear_matmul.out", out, product)
    for name, args in {
        "int8_mm_dequant": (product, scales, stats, dtype, bias),
        "int8_scaled_mm": (found, codes, scales, stats, bias, dtype),
        "int8_mixed_scaled_mm": (x, found, codes, scales, stats, columns, bias),
    }.items():
        put(name, getattr(theirs, name)(*args), ours[name](*args), exact=False)


def served_by_ours(backend: Any) -> bool:
    """Whether a quantization reaches our kernel."""
    kernels, _ = backend.load_backend("cpu")
    if not backend._kept or "quantize_4bit" not in kernels:
        return False
    kernel, called = kernels["quantize_4bit"], []
    why_not = kernel.why_not
    object.__setattr__(kernel, "why_not", lambda *args: called.append(1) or why_not(*args))
    torch.ops.bitsandbytes.quantize_4bit(torch.randn(64), 64, "nf4", torch.uint8)
    return bool(called)


def eval_forward(bitsandbytes: Any) -> dict[str, Any]:
    """The weight of stock Linear4bit before and after a forward in eval mode."""
    torch.manual_seed(1)
    layer = bitsandbytes.nn.Linear4bit(
        LAYER_K, LAYER_N, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
    )
    layer = layer.to("cpu").eval()
    restore = bitsandbytes.functional.dequantize_4bit
    codes, before = layer.weight.data.clone(), restore(layer.weight.data, layer.weight.quant_state)
    x = torch.randn(3, LAYER_K, dtype=torch.bfloat16)
    with torch.no_grad():
        given, wanted = layer(x).double(), x.double() @ before.double().T
    same = layer.weight.data.shape == codes.shape and torch.equal(layer.weight.data, codes)
    after = restore(layer.weight.data, layer.weight.quant_state)
    return {
        "weight after eval": "same" if same else "repacked",
        "dequantized after eval": "same" if torch.equal(after, before) else "different",
        "eval error": float((given - wanted).norm() / wanted.norm()),
    }


def main(part: str) -> None:
    """Everything, in an order in which nothing is loaded before it is looked at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import bitsandbytes
    found: dict[str, Any] = {
        "part": part,
        "warnings": [str(w.message) for w in caught if "Overriding" in str(w.message)],
        "loaded at import": sorted(
            name
            for name in sys.modules
            if name in ("numba", "llvmlite") or name.startswith("bitsanywhere.backends.c")
        ),
    }
    from bitsanywhere.integrations import bitsandbytes_backend as backend

    if part == "no cpu kernels":
        backend.load_backend = lambda device: ({}, "not here")
    backend.register()
    found["libraries"] = len(backend._kept)
    found["served by ours"] = served_by_ours(backend)
    if part != "alone":
        found["ops"] = compare_ops()
        found |= eval_forward(bitsandbytes)
        try:
            torch.ops.bitsandbytes.quantize_4bit(torch.randn(64).double(), 64, "nf4", torch.uint8)
            found["float64"] = "accepted"
        except Exception as error:
            found["float64"] = f"{type(error).__module__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
