"""Finds the libraries behind a path: a wheel, a file, a folder or an installed package.

Members of wheels are inflated piece by piece and never written to disk. A wheel is input from
strangers: how much it may inflate to is bounded before anything is inflated.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from bitsanywhere.arch.library import read_library
from bitsanywhere.arch.model import Library
from bitsanywhere.errors import AuditError

LIBRARY_NAME = re.compile(r"\.(so(\.\d+)*|pyd|dll|cubin|fatbin|o)$", re.IGNORECASE)
PACKAGE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
ARCHIVES = (".whl", ".zip")

MAX_MEMBERS, MAX_LIBRARIES = 200_000, 10_000
MAX_INFLATED = 16 << 30
# Deflate reaches 1032:1 on constant bytes; machine code does not reach 20:1.
MAX_RATIO = 50
RATIO_FREE = 1 << 20

BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@dataclass(frozen=True)
class Member:
    """A file that may hold GPU code.

    Attributes:
        path: the name to report.
        size: in bytes.
        open_stream: opens it at its start.
        file, changed: its place on disk and when it changed (ns); members of archives have none.
    """

    path: str
    size: int
    open_stream: Callable[[], BinaryIO] = field(compare=False)
    file: str = ""
    changed: int = 0


@dataclass(frozen=True)
class Place:
    """What one report is about: a wheel, a package, a folder, or one loose file (`single`)."""

    path: str
    package: str
    version: str
    open: Callable[[], AbstractContextManager[list[Member]]]
    single: bool = False


def find(path: str) -> Iterator[Place]:
    """Everything that can be audited behind ``path``.

    A wheel or a file gives one place; a folder gives one per wheel in it and one for the loose
    libraries; anything that is no path is looked up as the name of an installed package.

    Raises:
        AuditError: if there is nothing of that name, or nothing that can be audited.
    """
    here = Path(path)
    if here.is_dir():
        yield from _folder(here)
        return
    if here.is_file():
        yield _wheel(here) if _is_archive(here) else _loose(path, [here], here.parent, single=True)
        return
    installed = find_installed(path)
    if installed is None:
        raise AuditError(
            f"{path!r} is no file, no folder and no installed package",
            mend="Give a wheel, a shared library, a folder, or a name that `pip show` knows.",
        )
    yield installed


def read(member: Member) -> Library:
    """The GPU code of one member.

    Raises:
        AuditError: if it is damaged, or cannot be read.
    """
    try:
        return read_library(member.path, member.open_stream, member.size)
    except AuditError:
        raise
    except (*BROKEN_ZIP, OSError) as error:
        raise AuditError(f"{member.path!r} cannot be read", str(error)) from error


@lru_cache(maxsize=16)
def read_once(member: Member) -> Library:
    """`read` of a file on disk, remembered in this process until its size or time changes."""
    return read(member)


def _folder(folder: Path) -> Iterator[Place]:
    """Wheels in a folder, and its loose libraries; links to folders are not followed."""
    wheels, libraries = [], []
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(root, name)
            if not _is_regular(file):
                continue
            if name.endswith(".whl"):
                wheels.append(file)
            elif LIBRARY_NAME.search(name):
                libraries.append(file)
    if not wheels and not libraries:
        raise AuditError(
            f"{str(folder)!r} holds no wheel and no shared library",
            mend="Give a folder with .whl, .so, .pyd, .dll, .cubin or .fatbin files.",
        )
    yield from map(_wheel, wheels)
    if libraries:
        yield _loose(str(folder), libraries, folder)


def _loose(path: str, files: list[Path], base: Path, single: bool = False) -> Place:
    """Files on disk, named relative to ``base``."""

    def members() -> AbstractContextManager[list[Member]]:
        return nullcontext([_member(file, file.relative_to(base).as_posix()) for file in files])

    return Place(path, "", "", members, single)


def find_installed(name: str) -> Place | None:
    """The libraries of an installed distribution, named as its record names them, or None."""
    try:
        found = metadata.distribution(name) if PACKAGE_NAME.fullmatch(name) else None
    except metadata.PackageNotFoundError:
        found = None
    if found is None:
        return None
    files = [each for each in found.files or () if LIBRARY_NAME.search(each.name)]

    def members() -> AbstractContextManager[list[Member]]:
        located = [(Path(str(each.locate())), each.as_posix()) for each in files]
        return nullcontext([_member(file, name) for file, name in located if _is_regular(file)])

    return Place(f"{name} {found.version}", found.metadata["Name"], found.version, members)


def _member(file: Path, name: str) -> Member:
    """A file on disk.

    Raises:
        AuditError: if it is no regular file or may not be read.
    """
    try:
        found = file.stat()
        with file.open("rb"):
            return Member(
                path=name,
                size=found.st_size,
                open_stream=lambda: file.open("rb"),
                file=str(file),
                changed=found.st_mtime_ns,
            )
    except OSError as error:
        raise AuditError(f"{str(file)!r} cannot be read", str(error)) from error


def _wheel(file: Path) -> Place:
    """A wheel; its name gives package and version."""
    parts = file.name.removesuffix(".whl").split("-")
    package, version = (parts[0], parts[1]) if len(parts) >= 5 else ("", "")

    @contextmanager
    def members() -> Iterator[list[Member]]:
        try:
            archive = zipfile.ZipFile(file)
            listed = _archive_members(archive, file.stat().st_size)
        except AuditError:
            raise
        except (*BROKEN_ZIP, OSError) as error:
            raise AuditError(f"{str(file)!r} is no readable zip archive", str(error)) from error
        with archive:
            yield listed

    return Place(str(file), package, version, members)


def _archive_members(archive: zipfile.ZipFile, size: int) -> list[Member]:
    """Members that may hold GPU code.

    Raises:
        AuditError: if the archive is made to inflate without bounds.
    """
    listed = archive.infolist()
    chosen = [each for each in listed if LIBRARY_NAME.search(each.filename)]
    if len(listed) > MAX_MEMBERS or len(chosen) > MAX_LIBRARIES:
        raise AuditError(
            f"the archive lists {len(listed)} members, {len(chosen)} of them libraries",
            f"At most {MAX_MEMBERS} and {MAX_LIBRARIES} are read.",
        )
    if sum(each.compress_size for each in listed) > size:
        raise AuditError("members of the archive overlap", "This is how a zip bomb is built.")
    if sum(each.file_size for each in chosen) > MAX_INFLATED:
        raise AuditError(f"the archive would inflate to more than {MAX_INFLATED >> 30} GiB")
    for each in chosen:
        if each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise AuditError(f"{each.filename!r} is compressed in a way that wheels do not use")
        if each.file_size > MAX_RATIO * each.compress_size + RATIO_FREE:
            raise AuditError(
                f"{each.filename!r} would inflate from {each.compress_size} to "
                f"{each.file_size} bytes",
                f"More than {MAX_RATIO}:1 is a zip bomb, not machine code.",
            )
    return [Member(each.filename, each.file_size, _opener(archive, each)) for each in chosen]


def _opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], BinaryIO]:
    """Opens ``member`` at its start."""
    return lambda: archive.open(member)  # type: ignore[return-value]


def _is_archive(file: Path) -> bool:
    """Whether a file is to be read as a zip archive."""
    if file.name.endswith(ARCHIVES):
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise AuditError(f"{str(file)!r} cannot be read", str(error)) from error


def _is_regular(file: Path) -> bool:
    """Whether a path is a regular file, not a pipe or a device."""
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False
