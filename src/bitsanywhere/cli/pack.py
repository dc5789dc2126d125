"""`bitsanywhere pack`: kernels compiled elsewhere, for devices that cannot compile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bitsanywhere.backends.cuda.jit import nvrtc, pack_builder, packs
from bitsanywhere.errors import BitsAnywhereError
from bitsanywhere.settings import settings


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `build`, `install` and `list`."""
    parser.description = __doc__
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="compile every kernel; needs no GPU")
    build.add_argument(
        "--arch",
        required=True,
        metavar="sm_87[,...]|all",
        help="architectures; all = every one that NVRTC knows from sm_75 on",
    )
    build.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    build.add_argument("--nvrtc", metavar="PATH", help="the libnvrtc to use; default: the newest")
    install = actions.add_parser("install", help="check a pack and copy it to the user's packs")
    install.add_argument("pack", type=Path, metavar="PACK", help="a folder made by build")
    actions.add_parser("list", help="show the installed packs")


def execute(args: argparse.Namespace) -> int:
    """Runs the chosen action; returns the exit status."""
    action = {"build": _build, "install": _install, "list": _list}[args.action]
    try:
        return action(args)
    except BitsAnywhereError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _build(args: argparse.Namespace) -> int:
    from bitsanywhere.backends.cuda import kernel_sources

    compiler = nvrtc.Nvrtc(args.nvrtc) if args.nvrtc else nvrtc.find()
    every = pack_builder.supported(compiler)
    archs = every if args.arch == "all" else tuple(args.arch.split(","))
    manifest = pack_builder.build(archs, args.out, kernel_sources, compiler)
    print(f"{args.out}: {_summary(manifest)}")
    return 0


def _install(args: argparse.Namespace) -> int:
    place = packs.install(args.pack, settings().pack_dir)
    print(f"{place}: {_summary(packs.Manifest.read(place))}")
    return 0


def _list(args: argparse.Namespace) -> int:
    installed = packs.InstalledPacks(settings().pack_dir)
    for place, manifest in installed.manifests.items():
        print(f"{place}: {_summary(manifest)}")
    for problem in installed.problems:
        print(f"error: {problem}", file=sys.stderr)
    if not installed.manifests:
        print(f"No kernel packs in {installed.folder}.")
    return 1 if installed.problems else 0


def _summary(manifest: packs.Manifest) -> str:
    return (
        f"{len(manifest.kernels)} kernels for {', '.join(manifest.archs)}, NVRTC {manifest.nvrtc}"
    )
