"""``make bench``: measures what this machine has, draws the plots, renews the tables.

python -m benchmarks.run [cpu|gpu]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch

PARTS = {
    "cpu": ("cpu", "int8_cpu", "optimizers_cpu", "qlora_step", "compile_time"),
    "gpu": ("gpu", "int8_gpu", "optimizers_gpu", "llama_1b"),
}


def main() -> None:
    """Each part in a process of its own, so that none inherits another's state."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="?", choices=PARTS, help="default: both, if there is a GPU")
    only = parser.parse_args().kind
    kinds = [only] if only else ["cpu", "gpu"] if torch.cuda.is_available() else ["cpu"]
    parts = [part for kind in kinds for part in PARTS[kind]]
    for part in (*parts, "plots", "tables"):
        subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=True)


if __name__ == "__main__":
    main()
