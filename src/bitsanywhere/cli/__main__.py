"""Wires the commands; each is imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Each command, which is also its module's name here, and its line in the list of commands.
COMMANDS = {
    "run": "run a script whose `import bitsandbytes` shall find this library",
    "doctor": "say what this machine can run, and by which kernels",
    "audit": "say on which GPUs the binaries of an installed package can run",
    "matrix": "show which library runs on which GPU architecture",
    "pack": "build, install and list kernels compiled ahead of time",
    "quantize": "make a 4-bit or 8-bit checkpoint, some rows of one tensor at a time",
    "validate": "measure what 4 bits cost a model, in quality, speed and memory",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; None means the process's.

    Returns:
        The exit status: 0 for success; wrong usage exits with 2.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="bitsanywhere", description="k-bit quantization tools")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((word for word in arguments if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary)
        if name == asked:
            module = importlib.import_module(f"bitsanywhere.cli.{name}")
            module.configure_parser(subparser)
            subparser.set_defaults(execute=module.execute)
    args = parser.parse_args(arguments)
    if args.version:
        from bitsanywhere.version import __version__

        print(__version__)
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    return args.execute(args)


if __name__ == "__main__":
    sys.exit(main())
