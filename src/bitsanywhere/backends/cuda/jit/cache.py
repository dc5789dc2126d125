"""Compiled kernels on disk: content-addressed, hash-checked, bounded, safe among processes.

A file is `magic (8 bytes) | SHA-256 of the rest (32) | length of metadata (u32) | metadata (JSON) |
image`. It is written under a temporary name and renamed, so a reader sees all of it or nothing; a
file that is not exactly what was written counts as absent and is replaced. Nothing is unpickled.
Its time of modification is its time of last use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bitsanywhere.backends.cuda.jit.signature import checked
from bitsanywhere.errors import CacheError, InvalidArgumentError

if TYPE_CHECKING:
    from bitsanywhere.backends.cuda.jit.compiler import Compiled

log = logging.getLogger(__name__)

_MAGIC = b"BITSANY1"
_SUFFIX = ".kernel"
_MOST_BYTES = 64 << 20
_MOST_NOTE_BYTES = 1 << 16
_STALE_SECONDS = 3600


class Image(NamedTuple):
    """What the driver loads: machine code (`arch` sm_XX) or PTX (compute_XX), see `Compiled`."""

    entry: str
    arch: str
    parameters: str
    data: bytes

    @classmethod
    def of(cls, compiled: Compiled) -> Image:
        """The part of a compiled kernel that a launch needs."""
        return cls(compiled.entry, compiled.arch, compiled.parameters, compiled.image)


def cache_key(digest: str, arch: str, nvrtc: tuple[int, int]) -> str:
    """Name of a kernel: SHA-256 over source and options (`digest`), architecture, NVRTC version."""
    content = json.dumps([digest, arch, list(nvrtc)])
    return hashlib.sha256(content.encode()).hexdigest()


class DiskCache:
    """A folder of images; works in memory only where the folder cannot be written.

    Args:
        folder: created with mode 0700 if missing.
        limit: bytes that the folder's kernels may take; the least recently used go first.

    Raises:
        CacheError: the folder belongs to another user, or others may write to it.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._memory: dict[str, Image] = {}
        self._complained = False
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._complain(error)
            return
        check_private(folder, "BITSANYWHERE_CACHE_DIR")

    def __contains__(self, key: str) -> bool:
        """Whether `get` will find an image, unless its file is damaged."""
        return key in self._memory or os.path.exists(self._path(key))

    def get(self, key: str) -> Image | None:
        """The image of a key, or None if there is none or its file is damaged."""
        if key in self._memory:
            return self._memory[key]
        path = self._path(key)
        try:
            content = read_bounded(path, _MOST_BYTES)
        except OSError:
            return None
        image = _decode(content)
        if image is None:
            log.warning("The cached kernel %s is damaged; it will be compiled again.", path)
            return None
        try:
            os.utime(path)
        except OSError:
            log.debug("The time of use of %s cannot be noted.", path)
        self._memory[key] = image
        return image

    def put(self, key: str, image: Image) -> None:
        """Keeps an image, on disk if possible, in memory in any case."""
        self._memory[key] = image
        if self._write(self._path(key), _encode(image)):
            self._prune(self._path(key).name)

    def read_note(self, name: str) -> dict[str, object]:
        """What `write_note` kept under a name; nothing if there is nothing, or it is damaged."""
        try:
            note = json.loads(read_bounded(self.folder / f"{name}.json", _MOST_NOTE_BYTES))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def write_note(self, name: str, note: dict[str, object]) -> None:
        """Keeps a small fact for later processes, if the disk can be written."""
        self._write(self.folder / f"{name}.json", json.dumps(note).encode())

    def _write(self, path: Path, content: bytes) -> bool:
        """Writes a file that appears at once, by renaming; whether that worked."""
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(
                suffix=".tmp", prefix=f".{path.name[:16]}.", dir=self.folder
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError as error:
            self._complain(error)
            if temporary is not None:
                _remove(Path(temporary))
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _prune(self, newest: str) -> None:
        """Removes abandoned temporary files, and the least recently used kernels over the bound."""
        kernels, total = [], 0
        try:
            entries = list(os.scandir(self.folder))
        except OSError:
            return
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                # Another process removed it meanwhile.
                continue
            if entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_SECONDS:
                _remove(Path(entry.path))
            elif entry.name.endswith(_SUFFIX):
                total += status.st_size
                if entry.name != newest:
                    kernels.append((status.st_mtime_ns, status.st_size, entry.path))
        for _, size, path in sorted(kernels):
            if total <= self.limit:
                break
            _remove(Path(path))
            total -= size

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning(
                "Compiled kernels are kept in memory only, since %s cannot be written (%s). "
                "BITSANYWHERE_CACHE_DIR can name another folder.",
                self.folder,
                error.strerror or error,
            )


def check_private(folder: Path, variable: str, owners: tuple[int, ...] = ()) -> None:
    """Refuses a folder whose content another user could change.

    Args:
        variable: the environment variable that moves the folder, for the message.
        owners: user ids allowed besides our own.

    Raises:
        CacheError: the folder is no folder, is another user's, or others may write to it.
    """
    status = folder.stat()
    elsewhere = f"Or set {variable} to a folder of your own."
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{folder} is not a folder.", "", elsewhere)
    # Windows keeps its per-user folders private by access lists instead.
    if not hasattr(os, "geteuid"):
        return
    user = os.geteuid()
    if status.st_uid not in (user, *owners):
        raise CacheError(
            f"{folder} belongs to user {status.st_uid}, and this process runs as user {user}.",
            "Compiled kernels in it could have been changed by that user.",
            f"chown -R {user} {folder}\n{elsewhere}",
        )
    if status.st_mode & 0o022:
        raise CacheError(
            f"{folder} may be written by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            "Compiled kernels in it could have been changed by another user.",
            f"chmod go-w {folder}\n{elsewhere}",
        )


def read_bounded(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes; a link is not followed.

    Raises:
        OSError: it is missing, a link, no regular file, or larger.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path} is larger than {most} bytes")
    return content


def _encode(image: Image) -> bytes:
    fields = image._asdict()
    data = fields.pop("data")
    metadata = json.dumps(fields).encode()
    rest = struct.pack("<I", len(metadata)) + metadata + data
    return _MAGIC + hashlib.sha256(rest).digest() + rest


def _decode(content: bytes) -> Image | None:
    rest = content[40:]
    if content[:8] != _MAGIC or len(rest) < 4 or hashlib.sha256(rest).digest() != content[8:40]:
        return None
    (length,) = struct.unpack_from("<I", rest)
    try:
        fields = json.loads(rest[4 : 4 + length])
        image = Image(**fields, data=rest[4 + length :])
        checked(image.parameters)
    except (ValueError, TypeError, InvalidArgumentError):
        return None
    return image


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        log.debug("%s cannot be removed.", path)
