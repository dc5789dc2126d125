"""Object code on disk, so that a kernel is compiled once for a processor.

A file is named after the SHA-256 of everything that decides its content and starts with the
SHA-256 of that content, checked on load. It is written under another name and renamed. A folder
that other users may write to is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from bitsanywhere.settings import settings

logger = logging.getLogger("bitsanywhere")
_DIGEST = 32


def folder() -> Path:
    """Where CPU kernels are cached.

    Raises:
        InvalidArgumentError: an environment variable holds a value that is not allowed.
    """
    return settings().cache_dir / "cpu"


def read(key: str) -> bytes | None:
    """The object code stored under `key`, or None if there is none to be trusted."""
    try:
        path = folder() / f"{key}.o"
        if _exposed(path.parent):
            return None
        blob = path.read_bytes()
    except (OSError, RuntimeError):
        return None
    digest, code = blob[:_DIGEST], blob[_DIGEST:]
    if hashlib.sha256(code).digest() != digest:
        logger.warning("%s is damaged; the kernel is compiled anew", path)
        return None
    return code


def write(key: str, code: bytes) -> None:
    """Stores object code; a folder that cannot be used is logged and left alone."""
    try:
        place = folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _exposed(place):
            logger.warning("%s can be written by other users; CPU kernels are not cached", place)
            return
        handle, temporary = tempfile.mkstemp(dir=place, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, place / f"{key}.o")
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, RuntimeError) as error:
        # RuntimeError: the user has no home folder.
        logger.warning("CPU kernels are not cached: %s", error)


def _exposed(place: Path) -> bool:
    """Whether somebody else could have put a file into `place`."""
    if os.name != "posix":
        return False
    status = place.stat()
    return status.st_uid != os.getuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
