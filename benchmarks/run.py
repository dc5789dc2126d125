"""``make bench``: measures what this machine has, draws the plots, renews the tables."""

from __future__ import annotations

import subprocess
import sys

import torch

CPU = ("cpu", "int8_cpu", "optimizers_cpu", "qlora_step")
GPU = ("gpu", "int8_gpu", "optimizers_gpu")


def main() -> None:
    """Each part in a process of its own, so that none inherits another's state."""
    parts = CPU + (GPU if torch.cuda.is_available() else ())
    for part in (*parts, "plots", "tables"):
        subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=True)


if __name__ == "__main__":
    main()
