"""Run as a script: optimizers under the name of bitsandbytes.

    python ways.py instead|beside

Prints one JSON object: which module the class is of, and how far a run of it ends from ours.
"""

from __future__ import annotations

import importlib
import json
import sys

import torch


def run(library, name):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(60, 70, generator=generator))
    optimizer = getattr(library.optim, name)([p], lr=1e-2)
    for _ in range(3):
        p.grad = torch.randn(60, 70, generator=generator)
        optimizer.step()
    return p.detach()


def main(way):
    if way == "instead":
        from bitsanywhere import compat

        compat.install(force=True)
    bitsandbytes = importlib.import_module("bitsandbytes")
    import bitsanywhere

    families = ("adagrad", "adam", "adamw", "ademamix", "lamb", "lars", "lion", "rmsprop", "sgd")
    for module in families:
        importlib.import_module(f"bitsandbytes.optim.{module}")
    base = importlib.import_module("bitsandbytes.optim.optimizer")
    names = (
        "Optimizer8bit",
        "Optimizer1State",
        "Optimizer2State",
        "GlobalOptimManager",
        "MockArgs",
    )
    assert all(hasattr(base, name) for name in names)
    distance = {
        name: float((run(bitsandbytes, name) - run(bitsanywhere, name)).abs().max())
        for name in ("AdamW8bit", "Lion32bit", "LAMB32bit", "AdEMAMix8bit")
    }
    print(json.dumps({"module": bitsandbytes.optim.AdamW8bit.__module__, "distance": distance}))


if __name__ == "__main__":
    main(sys.argv[1])
