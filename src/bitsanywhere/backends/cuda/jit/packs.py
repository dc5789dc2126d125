"""Installed kernel packs: machine code made on another machine, for devices without a compiler.

A pack is a folder with `manifest.json` and `<arch>/<file>.cubin`. The manifest:

```
{"format": 1, "nvrtc": "13.5", "source": "<SHA-256 over all sources>",
 "kernels": [{"name": entry point, "digest": SHA-256 of the kernel's source and options,
              "arch": "sm_87", "file": "sm_87/quantize-0123456789abcdef.cubin", "sha256": ...,
              "bytes": size of the file, "parameters": struct format}, ...]}
```

Packs are data: installing one executes nothing, and everything is checked, at installation and
again when a kernel is loaded, as if it came from an enemy. What cannot be checked is what the
machine code does on the GPU: install packs from those whom you would trust with a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitsanywhere.backends.cuda.jit import elf
from bitsanywhere.backends.cuda.jit.cache import Image, check_private, read_bounded
from bitsanywhere.backends.cuda.jit.signature import checked
from bitsanywhere.errors import InvalidArgumentError, PackError

FORMAT = 1
MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 32 << 20
_MOST_CUBIN_BYTES = 16 << 20
_MOST_KERNELS = 100_000
_PATTERNS = {
    "name": r"[A-Za-z_][A-Za-z0-9_]{0,199}",
    "digest": r"[0-9a-f]{64}",
    "arch": r"sm_[1-9][0-9]{1,2}",
    "file": r"sm_[1-9][0-9]{1,2}/[A-Za-z0-9_][A-Za-z0-9_-]{0,199}\.cubin",
    "sha256": r"[0-9a-f]{64}",
}


@dataclass(frozen=True)
class PackedKernel:
    """One line of a manifest; see the module's docstring."""

    name: str
    digest: str
    arch: str
    file: str
    sha256: str
    bytes: int
    parameters: str

    def __post_init__(self) -> None:
        for field, pattern in _PATTERNS.items():
            value = getattr(self, field)
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise PackError(f"A manifest's kernel has {field}={str(value)[:80]!r}.")
        if type(self.bytes) is not int or not 64 <= self.bytes <= _MOST_CUBIN_BYTES:
            raise PackError(f"{self.file}: a cubin has 64 to {_MOST_CUBIN_BYTES} bytes.")
        if self.file.split("/")[0] != self.arch:
            raise PackError(f"{self.file}: lies outside its architecture's folder, {self.arch}.")
        try:
            checked(str(self.parameters))
        except InvalidArgumentError as error:
            raise PackError(f"{self.file}: {error}") from error

    def read(self, folder: Path) -> bytes:
        """The machine code, once it is known to be what the manifest says.

        Raises:
            PackError: the file is missing, a link, of another size or content, or for another
                architecture.
        """
        # The file is checked not to be a link when opened; its folder is checked here.
        if (folder / self.arch).is_symlink():
            raise PackError(f"{folder / self.arch} is a link.", "A pack holds no links.")
        try:
            content = read_bounded(folder / self.file, self.bytes)
        except OSError as error:
            raise PackError(f"{folder / self.file} cannot be read.", str(error)) from error
        if hashlib.sha256(content).hexdigest() != self.sha256 or len(content) != self.bytes:
            raise PackError(
                f"{folder / self.file} is not the file that the manifest describes.",
                "It is corrupted, or was changed.",
                "Build or copy the pack again.",
            )
        if elf.architecture(content) != int(self.arch.removeprefix("sm_")):
            raise PackError(
                f"{folder / self.file} is machine code for sm_{elf.architecture(content)}, "
                f"not {self.arch}."
            )
        return content


@dataclass(frozen=True)
class Manifest:
    """What a pack holds. `source` is SHA-256 over all kernels' digests."""

    nvrtc: str
    source: str
    kernels: tuple[PackedKernel, ...]

    @property
    def archs(self) -> tuple[str, ...]:
        """The architectures, ascending."""
        return tuple(sorted({k.arch for k in self.kernels}, key=lambda a: int(a[3:])))

    @property
    def identity(self) -> str:
        """A name for the pack: its content's hash, shortened."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def of(cls, nvrtc: str, kernels: tuple[PackedKernel, ...]) -> Manifest:
        """A manifest of these kernels."""
        return cls(nvrtc, _source_hash(kernels), kernels)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a pack.

        Raises:
            PackError: there is none, or it is malformed.
        """
        path = folder / MANIFEST
        try:
            content: Any = json.loads(read_bounded(path, _MOST_MANIFEST_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise PackError(f"{path} cannot be read.", str(error)) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise PackError(f"{path} is no manifest of format {FORMAT}.")
        nvrtc, source, kernels = (content.get(k) for k in ("nvrtc", "source", "kernels"))
        if set(content) != {"format", "nvrtc", "source", "kernels"}:
            raise PackError(f"{path} has missing or unknown fields.")
        if not isinstance(nvrtc, str) or not re.fullmatch(r"[0-9]{1,3}\.[0-9]{1,3}", nvrtc):
            raise PackError(f"{path}: nvrtc={str(nvrtc)[:80]!r} is no version.")
        if not isinstance(kernels, list) or not 0 < len(kernels) <= _MOST_KERNELS:
            raise PackError(f"{path}: a pack holds 1 to {_MOST_KERNELS} kernels.")
        manifest = cls(nvrtc, str(source), tuple(_packed(kernel, path) for kernel in kernels))
        if len({k.file for k in manifest.kernels}) != len(kernels):
            raise PackError(f"{path} lists a file twice.")
        if len({(k.digest, k.arch) for k in manifest.kernels}) != len(kernels):
            raise PackError(f"{path} lists a kernel twice.")
        if source != _source_hash(manifest.kernels):
            raise PackError(f"{path}: the source hash does not match the kernels.")
        return manifest


def _packed(fields: object, path: Path) -> PackedKernel:
    if not isinstance(fields, dict):
        raise PackError(f"{path}: a kernel is {str(fields)[:80]!r}.")
    try:
        return PackedKernel(**fields)
    except TypeError as error:
        raise PackError(f"{path}: a kernel has missing or unknown fields.", str(error)) from error


def _source_hash(kernels: tuple[PackedKernel, ...]) -> str:
    digests = "\n".join(sorted({kernel.digest for kernel in kernels}))
    return hashlib.sha256(digests.encode()).hexdigest()


def install(pack: Path, folder: Path) -> Path:
    """Copies a pack among the installed ones, after checking all of it; returns its new folder.

    Only files that the manifest lists are copied. The copy appears at once, by renaming; a pack
    that is installed already stays.

    Raises:
        PackError: the pack is malformed, or `folder` cannot be written.
        CacheError: `folder` may be written by others.
    """
    manifest = Manifest.read(pack)
    place = folder / manifest.identity
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        check_private(folder, "BITSANYWHERE_PACK_DIR")
        temporary = Path(tempfile.mkdtemp(prefix=".install-", dir=folder))
    except OSError as error:
        raise PackError(
            f"{folder} cannot be written.", str(error), "Set BITSANYWHERE_PACK_DIR to another."
        ) from error
    try:
        for kernel in manifest.kernels:
            target = temporary / kernel.file
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(kernel.read(pack))
        (temporary / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, place)
    except OSError as error:
        if not (place / MANIFEST).is_file():
            raise PackError(f"{pack} cannot be installed in {folder}.", str(error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


class InstalledPacks:
    """The packs in a folder, looked up by a kernel's source digest. Read when first asked.

    Args:
        folder: may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def _read(self) -> tuple[dict[Path, Manifest], list[str]]:
        manifests, problems = {}, []
        if self.folder.is_dir():
            # The system's administrator may own a folder shared by all users.
            check_private(self.folder, "BITSANYWHERE_PACK_DIR", owners=(0,))
            for place in sorted(self.folder.iterdir()):
                if not re.fullmatch("[0-9a-f]{16}", place.name) or place.is_symlink():
                    continue
                try:
                    manifests[place] = Manifest.read(place)
                except PackError as error:
                    problems.append(str(error))
        return manifests, problems

    @property
    def manifests(self) -> dict[Path, Manifest]:
        """Folder -> manifest of every installed pack that is well-formed.

        Raises:
            CacheError: the folder may be written by others.
        """
        return self._read[0]

    @property
    def problems(self) -> list[str]:
        """What is wrong with the installed packs that are not well-formed."""
        return self._read[1]

    def archs(self, digest: str) -> tuple[str, ...]:
        """The architectures that hold the kernel of this digest."""
        return tuple(kernel.arch for _, kernel in self._of(digest))

    def image(self, digest: str, arch: str) -> Image:
        """The kernel of this digest for an architecture.

        Raises:
            PackError: no pack holds it, or its file is not what the manifest says.
        """
        for place, kernel in self._of(digest):
            if kernel.arch == arch:
                return Image(kernel.name, arch, kernel.parameters, kernel.read(place))
        raise PackError(f"No installed pack holds this kernel for {arch}.")

    def why_not(self, arch: str) -> str:
        """Why no pack serves an architecture, in words."""
        if self.problems:
            return "; ".join(self.problems)
        if not self.manifests:
            return f"none installed in {self.folder}"
        held = sorted({a for manifest in self.manifests.values() for a in manifest.archs})
        return (
            f"those in {self.folder} (for {', '.join(held)}) do not hold this kernel, in this "
            f"version of bitsanywhere, for {arch}"
        )

    def _of(self, digest: str) -> list[tuple[Path, PackedKernel]]:
        return [
            (place, kernel)
            for place, manifest in self.manifests.items()
            for kernel in manifest.kernels
            if kernel.digest == digest
        ]
