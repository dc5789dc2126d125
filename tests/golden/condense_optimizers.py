"""Condenses the golden optimizer trajectories of bitsandbytes' CPU backend to what the tests need.

    python tests/golden/condense_optimizers.py SOURCE.safetensors

``optimizers.safetensors`` keeps the start and the five gradients once (they are the same in all
cases), and of each case the parameter after the last step; ``optimizers.json`` the classes and
their arguments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

HERE = Path(__file__).parent


def main(source: str) -> None:
    tensors, cases = {}, {}
    with safe_open(source, "pt") as golden:
        for name, case in json.loads(golden.metadata()["cases"]).items():
            if case.get("kind") != "optim":
                continue
            start, grads = golden.get_tensor(f"{name}.p0"), golden.get_tensor(f"{name}.grads")
            assert start.equal(tensors.setdefault("start", start))
            assert grads.equal(tensors.setdefault("grads", grads))
            tensors[case["cls"]] = golden.get_tensor(f"{name}.params")[-1].contiguous()
            cases[case["cls"]] = {**case["kwargs"], "lr": case["lr"]}
    save_file(tensors, HERE / "optimizers.safetensors")
    (HERE / "optimizers.json").write_text(json.dumps(cases, indent=0) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
