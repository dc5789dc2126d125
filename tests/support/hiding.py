"""Makes an installed bitsandbytes invisible to this process, module and metadata."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import Distribution
from typing import Any


class PathFinderWithout(PathFinder):
    """The ordinary finder, blind for bitsandbytes."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        """As PathFinder's."""
        if fullname.split(".")[0] == "bitsandbytes":
            return None
        return super().find_spec(fullname, path, target)

    @classmethod
    def find_distributions(cls, *args: Any, **kwargs: Any) -> Iterator[Distribution]:
        """As PathFinder's."""
        found = PathFinder.find_distributions(*args, **kwargs)
        return (each for each in found if each.metadata["Name"] != "bitsandbytes")


def hide_bitsandbytes() -> None:
    """Replaces the ordinary finder; call it before anything is imported."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = PathFinderWithout
