"""Takes out of a text what a bug report should not carry: folders that name the user."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Folders that are the same on everyone's machine and tell where a library came from.
COMMON = ("/usr", "/opt", "/lib", "/lib64", "/etc")
PATHS = re.compile(r"(?<![\w.~>/])(?:/[\w.+@~-]+){2,}|[A-Za-z]:\\[^\s'\"]+")


def scrub(text: str) -> str:
    """``text`` with the environment's folder as ``<env>``, the home as ``~``, others shortened."""
    for folder, name in ((sys.prefix, "<env>"), (str(Path.home()), "~")):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return PATHS.sub(_shorten, text)


def _shorten(match: re.Match[str]) -> str:
    """A path outside the common folders, by its last part only."""
    path = match[0]
    if path.startswith(COMMON):
        return path
    return ".../" + path.replace("\\", "/").rsplit("/", 1)[-1]
