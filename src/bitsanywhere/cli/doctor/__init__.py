"""`bitsanywhere doctor`: what this machine can run, through which kernels, and what is missing."""

from __future__ import annotations

import argparse
import json
import sys

from bitsanywhere.cli.doctor.collect import diagnose
from bitsanywhere.cli.doctor.render import as_dict, as_text, explain_op


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = __doc__
    parser.epilog = (
        "Really quantizes on each device, in a process of its own with a time limit. "
        "Exit status: 0 if quantization works here, 1 if not, 2 for bad usage. "
        "The output names no user, host or folder of yours: paste it into a bug report."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--explain", metavar="OP", help="only say which implementation an op takes, and why"
    )


def execute(args: argparse.Namespace) -> int:
    """Prints the diagnosis; returns the exit status."""
    found = diagnose()
    if args.explain is not None:
        text = explain_op(found, args.explain)
        if not text.strip():
            known = sorted({line["op"] for device in found.devices for line in device.ops})
            print(
                f"error: no op is called {args.explain!r}\nKnown: {', '.join(known)}.",
                file=sys.stderr,
            )
            return 2
        print(text, end="")
    elif args.json:
        print(json.dumps(as_dict(found), indent=2))
    else:
        print(as_text(found), end="")
    return 0 if found.works else 1
