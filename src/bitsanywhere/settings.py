"""Environment variables of the just-in-time compilers, validated when first read.

| variable | value | default |
|---|---|---|
| `BITSANYWHERE_CACHE_DIR` | folder of compiled kernels | the platform's user cache folder |
| `BITSANYWHERE_CACHE_MB` | bound on that folder's size, in MiB | 512 |
| `BITSANYWHERE_PACK_DIR` | folder of installed kernel packs | the platform's user data folder |
| `BITSANYWHERE_JIT_ARCH` | `sm_XX` or `compute_XX`: what to compile for on any chip | its own |
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from bitsanywhere.errors import InvalidArgumentError

ARCH = re.compile(r"(sm|compute)_[1-9][0-9]{1,2}[af]?")


class Settings(NamedTuple):
    """What the environment asks of the compiler; `forced_arch` is None for the chip's own."""

    cache_dir: Path
    cache_bytes: int
    pack_dir: Path
    forced_arch: str | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Settings from environment variables.

        Raises:
            InvalidArgumentError: a variable holds a value that is not allowed.
        """
        megabytes = environment.get("BITSANYWHERE_CACHE_MB", "512")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", megabytes):
            raise InvalidArgumentError(
                f"BITSANYWHERE_CACHE_MB={megabytes!r}",
                "It must be a whole number of MiB, at least 1.",
                "Unset it for the default of 512.",
            )
        forced = environment.get("BITSANYWHERE_JIT_ARCH") or None
        if forced is not None and not ARCH.fullmatch(forced):
            raise InvalidArgumentError(
                f"BITSANYWHERE_JIT_ARCH={forced!r}",
                "It must be sm_XX (machine code) or compute_XX (PTX, finished by the driver).",
                "Unset it to compile for the chip in front of you.",
            )
        cache, data = _user_folders(environment, sys.platform)
        return cls(
            cache_dir=_folder(environment, "BITSANYWHERE_CACHE_DIR", cache),
            cache_bytes=int(megabytes) << 20,
            pack_dir=_folder(environment, "BITSANYWHERE_PACK_DIR", data / "packs"),
            forced_arch=forced,
        )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings.of(os.environ)


def _folder(environment: Mapping[str, str], variable: str, default: Path) -> Path:
    value = environment.get(variable)
    if not value:
        return default
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise InvalidArgumentError(
            f"{variable}={value!r}", "It must be an absolute path.", "Write the path in full."
        )
    return path


def _user_folders(environment: Mapping[str, str], platform: str) -> tuple[Path, Path]:
    """(cache, data) folders: XDG base directories on Linux, the platform's own elsewhere."""
    home = Path(environment.get("HOME") or Path.home())
    if platform == "win32":
        local = environment.get("LOCALAPPDATA")
        base = Path(local) if local else home / "AppData" / "Local"
        return base / "bitsanywhere" / "Cache", base / "bitsanywhere"
    if platform == "darwin":
        library = home / "Library"
        return library / "Caches/bitsanywhere", library / "Application Support/bitsanywhere"

    def xdg(variable: str, default: str) -> Path:
        value = environment.get(variable, "")
        # The XDG specification: a relative path is to be ignored.
        return Path(value) if os.path.isabs(value) else home / default

    return (
        xdg("XDG_CACHE_HOME", ".cache") / "bitsanywhere",
        xdg("XDG_DATA_HOME", ".local/share") / "bitsanywhere",
    )
