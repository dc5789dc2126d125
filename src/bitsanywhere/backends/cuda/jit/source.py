"""What is compiled: one translation unit, specialised by macros, and its exact content."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from bitsanywhere.errors import InvalidArgumentError

CUDA_FOLDER = Path(__file__).resolve().parent.parent
BUNDLE = "sources.json"

# Spelled out although most are NVRTC's defaults: results must not hang on a default. A fused
# multiply-add is one instruction on every supported chip, so contraction differs on none.
OPTIONS = (
    "--std=c++17",
    "--fmad=true",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
# Left out, as by hatch_build.py, so that a kernel's digest is that of the wheel.
_COMMENT = re.compile(r"^[ \t]*//.*", re.MULTILINE)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class KernelSource:
    """One kernel: a file, its entry point and the macros that specialise it.

    Args:
        file: name of the file, relative to `root`, such as "quantize_4bit.cuh". Headers that it
            includes with quotes are found beside it.
        entry: name of the `extern "C" __global__` function.
        defines: macros as (name, value) pairs: dtype, blocksize, tile sizes.
        specific: the code uses instructions of exactly one chip (`wgmma` on sm_90): compiled for
            `sm_90a`; such code has no PTX fallback.
        root: folder of the sources; None for `backends/cuda`.

    Raises:
        InvalidArgumentError: `entry` or a macro's name is no C identifier.
    """

    file: str
    entry: str
    defines: tuple[tuple[str, str | int], ...] = ()
    specific: bool = False
    root: str | None = None

    def __post_init__(self) -> None:
        for name in (self.entry, *(name for name, _ in self.defines)):
            if not _IDENTIFIER.fullmatch(name):
                raise InvalidArgumentError(
                    f"{name!r} in the kernel source {self.file}", "It is no C identifier."
                )

    @property
    def options(self) -> tuple[str, ...]:
        """NVRTC options other than the architecture."""
        return OPTIONS + tuple(f"-D{name}={value}" for name, value in self.defines)

    def read(self) -> dict[str, str]:
        """Name -> text of the file (first) and of every header it includes, directly or not.

        Comment lines are blank.

        Conditional includes count whether active or not. Includes in angle brackets are left to
        NVRTC: device code needs none.

        Raises:
            InvalidArgumentError: a file is missing or lies outside the folder.
        """
        return {name: file.text for name, file in self._files().items()}

    def digest(self) -> str:
        """SHA-256, in hex, over the texts, the entry point and the options."""
        files = sorted((name, file.digest) for name, file in self._files().items())
        content = [self.file, self.entry, self.specific, list(self.options), files]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _files(self) -> dict[str, _File]:
        root = Path(self.root) if self.root else CUDA_FOLDER
        files: dict[str, _File] = {}
        pending = [(self.file, "")]
        while pending:
            name, includer = pending.pop()
            if name in files:
                continue
            try:
                file = _file(root, name)
            except FileNotFoundError:
                asked = f", included by {includer}," if includer else ""
                raise InvalidArgumentError(
                    f"The device source {name!r}{asked} is not in {root}.",
                    "Sources are complete in that folder.",
                    "Reinstall bitsanywhere.",
                ) from None
            files[name] = file
            pending += [(header, name) for header in file.headers]
        return files


class _File(NamedTuple):
    """A source, the SHA-256 of its text, and what it includes."""

    text: str
    digest: str
    headers: tuple[str, ...]


# A process reads a file once: kernels share most of their headers.
@cache
def _file(root: Path, name: str) -> _File:
    text = _text(root, name)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return _File(text, digest, tuple(_INCLUDE.findall(text)))


def _text(root: Path, name: str) -> str:
    """A source with its comment lines blank.

    A wheel has all of its sources in one file, which is two fifths smaller.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    bundle = root / BUNDLE
    if bundle.is_file():
        sources = _bundled(bundle)
        if name not in sources:
            raise FileNotFoundError(name)
        return sources[name]
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not (root / path).is_file():
        raise FileNotFoundError(name)
    return _COMMENT.sub("", (root / path).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _bundled(path: Path) -> dict[str, str]:
    """Name -> text of each source in a wheel, as hatch_build.py wrote them."""
    return json.loads(path.read_text(encoding="utf-8"))
