"""`bitsanywhere quantize`: a checkpoint in, a 4-bit or 8-bit checkpoint for transformers out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bitsanywhere.convert.options import COMPUTE_DTYPES, DEVICES, QUANT_TYPES, Options
from bitsanywhere.errors import BitsAnywhereError

DONE, FAILED, INTERRUPTED = 0, 1, 130

EPILOG = """\
The result loads with AutoModelForCausalLM.from_pretrained(DST), with bitsandbytes or with
bitsanywhere. Memory is needed for some rows of one tensor, not for the model. After Ctrl-C, a kill
or a power cut the same command goes on where it was; DST appears when it is whole.

exit status: 0 if DST is there, 1 if it could not be made, 2 for bad usage, 130 after Ctrl-C.

examples:
  bitsanywhere quantize Llama-3.2-1B Llama-3.2-1B-nf4 --double-quant
  bitsanywhere quantize model.gguf model-int8 --quant-type int8
"""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = __doc__
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="a Hugging Face folder with safetensors, or the GGUF file of a Llama-like model",
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="a new folder")
    parser.add_argument(
        "--quant-type", choices=QUANT_TYPES, default="nf4", help="default: %(default)s"
    )
    parser.add_argument(
        "--double-quant", action="store_true", help="quantize the 4-bit statistics too"
    )
    parser.add_argument(
        "--compute-dtype",
        choices=COMPUTE_DTYPES,
        help="what 4-bit layers compute in; default: the model's dtype",
    )
    parser.add_argument(
        "--skip",
        default="",
        metavar="NAME[,...]",
        help="modules to leave beside output embedding and tied weights: the full name, its "
        "beginning or its end",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="default: %(default)s")


def execute(args: argparse.Namespace) -> int:
    """Converts; returns the exit status."""
    try:
        from bitsanywhere.convert.quantize import quantize

        options = Options(
            quant_type=args.quant_type,
            double_quant=args.double_quant,
            compute_dtype=args.compute_dtype,
            skip=tuple(name.strip() for name in args.skip.split(",") if name.strip()),
            device=args.device,
        )
        summary = quantize(args.source, args.destination, options, progress=True)
    except (BitsAnywhereError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_left(args.destination)}", file=sys.stderr)
        return INTERRUPTED
    if summary.resumed:
        print(f"{summary.resumed} tensors were finished by an earlier run")
    print(summary.text())
    return DONE


def _left(destination: Path) -> str:
    from bitsanywhere.convert.work import work_folder

    folder = work_folder(destination)
    if not folder.exists():
        return "nothing was written"
    return f"the same command goes on from {folder}; delete it to give up"
