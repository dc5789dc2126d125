"""Runs every check in one process, in one of the ways to use the library.

    python scenario.py (beside|instead) WORK_FOLDER

"beside": an installed bitsandbytes with our kernels. "instead": that one hidden, and
`bitsanywhere.compat`. WORK_FOLDER/results.json maps the name of a check to "ok" or its traceback.
"""

from __future__ import annotations

import json
import sys
import traceback
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Place:
    """Folders and models that checks share."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.float_folder, self.saved_folder = work / "float", work / "saved"

    @cached_property
    def model(self) -> Any:
        """The 4-bit model; checks must not change it."""
        import tiny

        return tiny.load_4bit(self.float_folder).eval()

    def dense(self) -> Any:
        """A new bf16 model of the weights that the 4-bit codes stand for, by our reference."""
        import tiny
        from transformers import LlamaForCausalLM

        from bitsanywhere.ops.dequantize_4bit import dequantize_4bit_torch
        from bitsanywhere.ops.gemm_4bit import unnest_torch

        dense = LlamaForCausalLM.from_pretrained(self.float_folder, dtype="auto")
        for name, layer in tiny.linears(self.model).items():
            state = layer.weight.quant_state
            absmax = unnest_torch(
                state.state2.absmax, state.absmax, state.state2.code, state.offset
            )
            dense.get_submodule(name).weight.data = dequantize_4bit_torch(
                layer.weight.data, absmax, state.blocksize, "nf4", state.shape, state.dtype
            )
        return dense


def run(place: Place) -> dict[str, str]:
    """The outcome of every check, in the order in which they are written."""
    import int8_checks
    import model_checks
    import training_checks

    results = {}
    for module in (model_checks, training_checks, int8_checks):
        for name, function in list(vars(module).items()):
            if not name.startswith("check_"):
                continue
            try:
                function(place)
                results[name] = "ok"
            except Exception:
                results[name] = traceback.format_exc()
    return results


def main(way: str, work: str) -> None:
    """Sets the way up, makes the float model, runs, writes the results."""
    if way == "instead":
        sys.path.insert(0, str(HERE.parent / "support"))
        from hiding import hide_bitsandbytes

        hide_bitsandbytes()
        import bitsanywhere.compat  # noqa: F401
    import tiny

    place = Place(Path(work))
    tiny.save_float_model(place.float_folder)
    (place.work / "results.json").write_text(json.dumps(run(place)))


if __name__ == "__main__":
    main(*sys.argv[1:])
