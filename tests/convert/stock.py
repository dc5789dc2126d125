"""What transformers makes of the same models, in a process of its own.

    BITSANYWHERE_BACKEND=0 python stock.py (bitsandbytes|bitsanywhere) WORK

For each folder X of WORK, the quantized checkpoint X/ours is loaded and its logits are written to
X/logits_WAY.pt. With bitsandbytes, untouched by this library, X/source is also quantized by
transformers itself, with the settings in X/ours/config.json, and saved as X/stock; if X/explicit
exists, with its list of modules to skip, else with transformers' own. With bitsanywhere, the 4-bit
weights are also restored and all is computed in float32: X/logits_float32.pt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if sys.argv[1] == "bitsanywhere":
    import bitsanywhere.compat

    bitsanywhere.compat.install(force=True)

import torch
import transformers
from transformers import BitsAndBytesConfig

OPTIONS = {"dtype": "auto", "device_map": {"": "cpu"}}


def settings(folder: Path, written: dict) -> BitsAndBytesConfig:
    """What our config.json says."""
    if not (folder / "explicit").exists():
        written["llm_int8_skip_modules"] = None
    return BitsAndBytesConfig.from_dict(written)


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of a fixed text; several tokens, so that matrices are multiplied, not vectors.

    As in training, where bitsandbytes 0.50.2 on CPUs computes in the dtype it was told to; else it
    may round weights to bfloat16. NaN where a block spans rows: it cannot use such weights there.
    """
    if model.config.hidden_size % 64:
        return torch.full((1,), torch.nan)
    if model.config.model_type == "dinov2":
        image = torch.linspace(-1, 1, 3 * 28 * 28, dtype=model.dtype).view(1, 3, 28, 28)
        with torch.no_grad():
            return model.train()(image).last_hidden_state.float()
    ids = torch.arange(24)[None] % model.config.vocab_size
    with torch.no_grad():
        return model.train()(ids).logits.float()


def main(way: str, work: Path) -> None:
    for folder in sorted(path for path in work.iterdir() if path.is_dir()):
        config = json.loads((folder / "ours" / "config.json").read_text())
        model_class = getattr(transformers, config["architectures"][0])
        loaded, report = model_class.from_pretrained(
            folder / "ours", output_loading_info=True, **OPTIONS
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys")), report
        torch.save(logits(loaded), folder / f"logits_{way}.pt")
        if way == "bitsanywhere" and config["quantization_config"]["load_in_4bit"]:
            exact = loaded.dequantize(dtype=torch.float32).float()
            torch.save(logits(exact), folder / "logits_float32.pt")
        if way == "bitsandbytes":
            made = model_class.from_pretrained(
                folder / "source",
                quantization_config=settings(folder, config["quantization_config"]),
                **OPTIONS,
            )
            made.save_pretrained(folder / "stock")
            torch.save(logits(made), folder / "logits_quantized_at_load.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
