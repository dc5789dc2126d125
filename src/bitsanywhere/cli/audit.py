"""`bitsanywhere audit`: where the GPU code in a wheel runs, and what error the rest get."""

from __future__ import annotations

import argparse
import sys

from bitsanywhere.arch.devices import USUAL, find_device
from bitsanywhere.arch.present import FORMATS
from bitsanywhere.arch.report import audit
from bitsanywhere.errors import AuditError, InvalidArgumentError

COVERED, NOT_COVERED, UNUSABLE = 0, 1, 2

EPILOG = """\
exit status: 0 if every device asked for is covered, 1 if one is not, 2 for bad usage or a file
that cannot be read. With --require only the required ones count; with neither --device nor
--require the usual devices are shown and the status is 0.

examples:
  bitsanywhere audit bitsandbytes --device orin-nano --cuda 12.6
  bitsanywhere audit dist/*.whl --require sm_87,sm_110
  bitsanywhere audit torch --format html > torch.html
"""


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.description = __doc__
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="a wheel, a shared library, a folder, or the name of an installed package",
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME|sm_XX",
        help="a device such as orin-nano or h100, or a capability; may be repeated",
    )
    parser.add_argument(
        "--cuda",
        metavar="X.Y",
        help="the CUDA version in use (runtime and driver), which decides the library that is "
        "loaded; without it every library counts",
    )
    parser.add_argument(
        "--require",
        default="",
        metavar="sm_87[,...]",
        help="exit with 1 unless all of these are covered",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMATS), default="table", help="default: %(default)s"
    )


def execute(args: argparse.Namespace) -> int:
    """Prints the report; returns the exit status."""
    try:
        required = [find_device(name).name for name in args.require.split(",") if name.strip()]
        asked = [find_device(name).name for name in args.device]
        report = audit(args.paths, [*asked, *required] or USUAL, args.cuda)
    except (AuditError, InvalidArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    sys.stdout.write(FORMATS[args.format](report))
    counted = required or asked
    return COVERED if all(report.covered(name) for name in counted) else NOT_COVERED
