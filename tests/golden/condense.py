"""Condenses the golden outputs of bitsandbytes' CPU backend to what the tests need.

    python tests/golden/condense.py SOURCE.safetensors

Every distinct input is kept once in ``golden.safetensors``; of every output its SHA-256, since the
tests ask for equal bits. Of the cases of shape (16, 16) the source's dequantized
values are left out: there bitsandbytes 0.50.2 takes the first block's scale for every row.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent
KINDS = ("4bit", "8bit_blockwise")


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes; shape and dtype are compared apart."""
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()


def normalized(tensor: torch.Tensor) -> torch.Tensor:
    """Floats with -0.0 as 0.0: for FP4's second zero the source has either, by shape."""
    return tensor + 0.0 if tensor.is_floating_point() else tensor


def main(source: str) -> None:
    inputs: dict[str, torch.Tensor] = {}
    cases = {}
    with safe_open(source, "pt") as golden:
        names = set(golden.keys())
        for name, case in json.loads(golden.metadata()["cases"]).items():
            if name.startswith("codebook_"):
                inputs[name] = golden.get_tensor(f"{name}.code").contiguous()
            if case.get("kind") not in KINDS:
                continue
            x = golden.get_tensor(f"{name}.x")
            key = f"x_{digest(x)[:16]}"
            inputs[key] = x.contiguous()
            outputs = {
                part: digest(normalized(golden.get_tensor(f"{name}.{part}")))
                for part in ("q", "absmax", "absmax2", "offset", "d")
                if f"{name}.{part}" in names
            }
            if case["shape"] == [16, 16]:
                del outputs["d"]
            cases[name] = {**case, "x": key, "sha256": outputs}
    save_file(inputs, HERE / "golden.safetensors")
    (HERE / "golden.json").write_text(json.dumps(cases, indent=0) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
