"""`bitsanywhere validate`: what 4 bits cost a model, measured, with a pass line for each suite."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from bitsanywhere.errors import BitsAnywhereError, InvalidArgumentError, MissingPackageError
from bitsanywhere.validate import SUITES, Outcome, Plan, validate
from bitsanywhere.validate.machine import arithmetic
from bitsanywhere.validate.plan import Settings
from bitsanywhere.validate.run import peer_installed

PASSED, MISSED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
NEEDED = ("transformers", "peft", "accelerate", "safetensors")

EPILOG = """\
The model is measured in bf16 and in NF4 with double quantization, by this library and, where one
is installed, by stock bitsandbytes. A suite's results stay in OUT as soon as it is done; the same
command goes on with the others. OUT/report.html shows everything, OUT/validate.json holds it.

exit status: 0 if every line was passed, 1 if one was missed, 2 for bad usage, 130 after Ctrl-C.

examples:
  bitsanywhere validate ./SmolLM2-135M-Instruct --out results
  bitsanywhere validate model.gguf --suite roundtrip,logits --device cuda --out results --json
"""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = __doc__
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a Hugging Face folder, or a GGUF file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is one"
    )
    parser.add_argument(
        "--suite",
        default=",".join(SUITES),
        metavar="NAME[,...]",
        help="what to measure; default: %(default)s",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="GGUF_OR_DIR",
        help="another version of the same model, such as a GGUF quantization, to compare with",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def execute(args: argparse.Namespace) -> int:
    """Runs the suites; returns the exit status."""
    done: list[Outcome] = []
    try:
        plan = plan_of(args)
        for outcome in validate(plan):
            done.append(outcome)
            write_report(plan, done)
            _say(outcome)
    except BitsAnywhereError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        kept = ", ".join(outcome.suite for outcome in done) or "nothing"
        print(f"\ninterrupted; complete, and kept in {args.out}: {kept}", file=sys.stderr)
        return INTERRUPTED
    if args.json:
        print((plan.out / "validate.json").read_text("utf-8"), end="")
    print(f"open {(plan.out / 'report.html').resolve()}", file=sys.stderr)
    return PASSED if all(outcome.passed for outcome in done) else MISSED


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the arguments ask for.

    Raises:
        InvalidArgumentError: an unknown suite, or a device that is not there.
        MissingPackageError: a package that the suites need is not installed.
    """
    import torch

    suites = tuple(name.strip() for name in args.suite.split(",") if name.strip())
    unknown = [name for name in suites if name not in SUITES]
    if unknown or not suites:
        raise InvalidArgumentError(
            f"--suite {args.suite}",
            f"The suites are {', '.join(SUITES)}.",
            "Give one or more of them, with commas between.",
        )
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"not installed: {', '.join(missing)}",
            "The model is loaded and trained with them.",
            'pip install "bitsanywhere[hf]"',
        )
    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        raise InvalidArgumentError(
            "--device cuda", "torch finds no CUDA device.", "Give --device cpu."
        )
    device = args.device or ("cuda" if there else "cpu")
    return Plan(
        model=args.model,
        out=args.out,
        device=device,
        settings=Settings(dtype=arithmetic(device)),
        suites=suites,
        reference=args.reference,
        peer=peer_installed(),
    )


def write_report(plan: Plan, outcomes: list[Outcome]) -> None:
    """Writes ``validate.json``, ``report.html`` and the plots, each whole."""
    from bitsanywhere.validate import store
    from bitsanywhere.validate.present import page, section

    suites = []
    for outcome in outcomes:
        suites.append(outcome.as_dict())
        shown = section(outcome, plan.settings)
        if shown is None:
            continue
        suites[-1]["text"] = shown.text
        suites[-1]["tables"] = [asdict(table) for table in shown.tables]
        suites[-1]["figures"] = {figure.name: figure.caption for figure in shown.figures}
        for figure in shown.figures:
            store.write_text(plan.out / f"{figure.name}.svg", figure.svg)
    content = {
        "model": plan.model.name,
        "reference": None if plan.reference is None else plan.reference.name,
        "device": plan.device,
        "settings": asdict(plan.settings),
        "passed": all(outcome.passed for outcome in outcomes),
        "suites": suites,
    }
    store.write_json(plan.out / "validate.json", content)
    store.write_text(plan.out / "report.html", page(plan, outcomes))


def _say(outcome: Outcome) -> None:
    from tqdm import tqdm

    from bitsanywhere.validate.present import summary

    tqdm.write(summary(outcome), file=sys.stderr)
