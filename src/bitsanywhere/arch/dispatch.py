"""Which of a package's libraries is loaded: some ship one per CUDA version.

bitsandbytes names its libraries ``libbitsandbytes_cuda126.so``. Up to 0.49 it loads the one of
exactly the CUDA in use; from 0.50 on the nearest of the same major: the highest one that is not
newer, otherwise the lowest. Libraries without a version in their name are always loaded, save
those that are named after another maker's platform (``_rocm72``, ``_xpu2025``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Version = tuple[int, int]
CUDA_IN_NAME = re.compile(r"_cuda(\d{2})(\d)(?=[._])")
OTHER_MAKERS = re.compile(r"_(rocm|xpu)\d+(?=[._])")
EXACT_BEFORE = {"bitsandbytes": (0, 50)}


def stated_cuda(path: str) -> Version | None:
    """The CUDA version in a library's name, or None."""
    match = CUDA_IN_NAME.search(path.rsplit("/", 1)[-1])
    return (int(match[1]), int(match[2])) if match else None


def select(
    paths: Sequence[str], cuda: Version | None, package: str = "", version: str = ""
) -> tuple[list[str], list[str]]:
    """The libraries that get loaded, and the names of which no variant fits.

    Args:
        paths: all libraries of the package.
        cuda: the CUDA version in use; None selects every variant.
        package: name of the distribution, "" if unknown.
        version: its version, "" if unknown.
    """
    if cuda is None:
        return list(paths), []
    exact = _is_exact(package, version)
    selected, missing = [], []
    variants: dict[str, dict[Version, str]] = {}
    for path in paths:
        stated = stated_cuda(path)
        if stated is None and not OTHER_MAKERS.search(path.rsplit("/", 1)[-1]):
            selected.append(path)
        elif stated is not None:
            variants.setdefault(CUDA_IN_NAME.sub("_cuda*", path), {})[stated] = path
    for name, group in variants.items():
        nearest = _nearest(group, cuda, exact)
        if nearest is None:
            missing.append(name)
        else:
            selected.append(group[nearest])
    return selected, missing


def _nearest(versions: Iterable[Version], cuda: Version, exact: bool) -> Version | None:
    """The version that is loaded for ``cuda``, or None."""
    same = [each for each in versions if each[0] == cuda[0]]
    if exact or cuda in same:
        return cuda if cuda in same else None
    lower = [each for each in same if each < cuda]
    return max(lower) if lower else min(same, default=None)


def _is_exact(package: str, version: str) -> bool:
    """Whether this release of a package insists on its exact CUDA version."""
    limit = EXACT_BEFORE.get(package.lower())
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return bool(limit and numbers and (int(numbers[1]), int(numbers[2])) < limit)
