"""Run as a script, with the real bitsandbytes and its own kernels: state dicts go both ways.

Prints one JSON object: of each class the largest relative distance between a run of bitsandbytes
alone and runs that change the library after two of three steps.
"""

from __future__ import annotations

import io
import json
import warnings

import bitsandbytes
import torch

import bitsanywhere

STEPS, CHANGE = 3, 2
NEEDED = {"SGD": {"momentum": 0.9}, "LARS": {"momentum": 0.9}}
# Its 32-bit state has the wrong shape, so that it cannot step on a CPU.
BROKEN = {"AdEMAMix32bit", "PytorchLARS"}


def start():
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in ((70, 70), (11,))]


def make(library, name, params):
    needed = next((v for k, v in NEEDED.items() if name.startswith(k)), {})
    return getattr(library.optim, name)(params, lr=1e-2, **needed)


def run(name, first, second):
    params = start()
    optimizer = make(first, name, params)
    generator = torch.Generator().manual_seed(4)
    for step in range(STEPS):
        if step == CHANGE and second is not first:
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            buffer.seek(0)
            optimizer = make(second, name, params)
            optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return params


def main():
    warnings.simplefilter("ignore")
    found = {}
    for name in bitsanywhere.optim.__all__:
        if name == "GlobalOptimManager" or name in BROKEN or name.startswith("Paged"):
            continue
        alone = run(name, bitsandbytes, bitsandbytes)
        worst = 0.0
        for ways in ((bitsandbytes, bitsanywhere), (bitsanywhere, bitsandbytes)):
            for a, b, p in zip(alone, run(name, *ways), start(), strict=True):
                way = (a - p).abs().max()
                worst = max(worst, float((a - b).abs().max() / way))
        found[name] = worst
    print(json.dumps(found))


if __name__ == "__main__":
    main()
