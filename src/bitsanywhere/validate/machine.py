"""What ran the measurements, for the head of a report."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

from bitsanywhere.validate.store import versions


def arithmetic(device: str) -> str:
    """What to compute in: "bfloat16", or "float32" on a CPU where torch is slow in bfloat16.

    Without vector instructions for it torch multiplies bfloat16 matrices by plain loops; measured
    on two AVX2 cores: 80 to 110 s for a LoRA step that takes 3 s in float32.
    """
    import torch

    fast = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bfloat16" if fast else "float32"


def machine(device: str) -> dict[str, Any]:
    """When, system, versions and processor, as JSON."""
    import torch

    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }
    if device == "cuda":
        return facts | {"device": torch.cuda.get_device_name()}
    return facts | {"device": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    """The processor's name, with the vector extensions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = fields.get("model name", platform.machine())
    return f"{name} ({', '.join(known)})" if known else name
