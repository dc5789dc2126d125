"""`bitsanywhere run`: a script that imports bitsandbytes, run on this library instead."""

from __future__ import annotations

import argparse
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from bitsanywhere.errors import InvalidArgumentError


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the options, and the script with everything after it."""
    parser.description = (
        "Runs a Python script or module; its `import bitsandbytes` finds this library."
    )
    parser.usage = "%(prog)s [-h] [--force] (SCRIPT | -m MODULE) [ARG ...]"
    parser.add_argument(
        "--force", action="store_true", help="also where a real bitsandbytes is installed"
    )
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, help="a module, as in python -m"
    )
    parser.add_argument(
        "script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a file and its arguments"
    )


def execute(args: argparse.Namespace) -> int:
    """Runs the script as ``__main__``; its SystemExit and exceptions pass through.

    Returns:
        0, or 2 if there is no such script or module.
    """
    try:
        target, arguments = _target(args)
    except InvalidArgumentError as error:
        print(f"bitsanywhere run: error: {error}", file=sys.stderr)
        return 2
    from bitsanywhere import compat

    compat.install(force=args.force)
    sys.argv = [target, *arguments]
    if args.module is not None:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")
    return 0


def _target(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The script or module, which exists, and its arguments."""
    # argparse ends -m MODULE ARG ... at a "--", and puts it and the rest into script
    given = args.script if args.module is None else [*args.module, *args.script]
    if not given:
        raise InvalidArgumentError("no script given", "Usage: bitsanywhere run SCRIPT [ARG ...]")
    target, *arguments = given
    if args.module is None:
        if not Path(target).exists():
            raise InvalidArgumentError(f"there is no file {target!r}", "Give a script's path.")
        return target, arguments
    sys.path.insert(0, str(Path.cwd()))
    if not _is_module(target):
        raise InvalidArgumentError(f"there is no module {target!r}", "It must be importable.")
    return target, arguments


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return False
        raise
