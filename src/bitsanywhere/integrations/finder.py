"""A finder that answers for the module and the distribution ``bitsandbytes`` with this library.

``bitsandbytes`` itself is a small module of its own, since its ``__version__`` differs; every
submodule is the very module of ours, so no class exists twice and a patched function is patched
under both names.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

NAME = "bitsandbytes"
OURS = "bitsanywhere"
# the bitsandbytes whose names and behaviour we follow, and a local label (PEP 440)
VERSION = f"0.50.2+{OURS}"
# where a module of theirs has another name here; all others have the same
RENAMED = {
    f"{NAME}.autograd._functions": f"{OURS}.autograd",
}
# a package of theirs that is a single module here
EMPTY_PACKAGES = {f"{NAME}.autograd"}
METADATA = f"""\
Metadata-Version: 2.1
Name: {NAME}
Version: {VERSION}
Summary: Provided by {OURS}.compat
"""


class Finder(MetaPathFinder):
    """Finds ``bitsandbytes`` and its submodules here.

    Args:
        force: answer although a real bitsandbytes is installed.
    """

    def __init__(self, force: bool) -> None:
        self.force = force

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """The spec of ``bitsandbytes`` or of a submodule that we have, else None."""
        if fullname == NAME:
            return spec_from_loader(fullname, TopLoader(), is_package=True)
        if fullname in EMPTY_PACKAGES:
            return spec_from_loader(fullname, PackageLoader(), is_package=True)
        if not fullname.startswith(f"{NAME}."):
            return None
        real = RENAMED.get(fullname, OURS + fullname[len(NAME) :])
        if find_spec(real) is None:
            return None
        return spec_from_loader(fullname, AliasLoader(real))

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterator[Distribution]:
        """Our distribution, where ``bitsandbytes`` or everything is asked for."""
        if context.name is not None and context.name.lower() != NAME:
            return
        if context.path is not sys.path and list(context.path) != sys.path:
            return
        if self.force or not self._others_have_it():
            yield CompatDistribution()

    def _others_have_it(self) -> bool:
        finders = (getattr(x, "find_spec", None) for x in sys.meta_path if x is not self)
        return any(find is not None and find(NAME, None) is not None for find in finders)


class PackageLoader(Loader):
    """An empty package."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: an ordinary module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to put in."""


class TopLoader(PackageLoader):
    """Fills the module ``bitsandbytes``: its own version, everything else read from ours."""

    def exec_module(self, module: ModuleType) -> None:
        """Gives the module every name of ours, and the submodules that theirs imports."""
        ours = importlib.import_module(OURS)

        def read(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
            return getattr(ours, name)

        module.__doc__ = f"{OURS} under the name of {NAME}."
        module.__dict__["__version__"] = VERSION
        module.__dict__["__all__"] = [name for name in ours.__all__ if not name.startswith("__")]
        module.__dict__["__getattr__"] = read
        module.__dict__["__dir__"] = lambda: [*module.__dict__, *dir(ours)]
        for name in (*RENAMED, f"{NAME}.utils"):
            importlib.import_module(name)


class AliasLoader(PackageLoader):
    """Puts the module ``real`` under another name.

    Args:
        real: full name of a module of ours.
    """

    def __init__(self, real: str) -> None:
        self.real = real

    def exec_module(self, module: ModuleType) -> None:
        """Swaps the new module for the real one: importlib hands out what is in sys.modules."""
        sys.modules[module.__name__] = importlib.import_module(self.real)


class CompatDistribution(Distribution):
    """Metadata of a ``bitsandbytes`` that owns no files."""

    def read_text(self, filename: str) -> str | None:
        """The two files that there are: METADATA and top_level.txt."""
        return {"METADATA": METADATA, "top_level.txt": f"{NAME}\n"}.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """Where a file of the distribution would be; there are none."""
        raise FileNotFoundError(f"{NAME}, provided by {OURS}, has no file {os.fspath(path)!r}")
