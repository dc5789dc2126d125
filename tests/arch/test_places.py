"""Paths: wheels, files, folders, installed packages, and archives built to do harm."""

from __future__ import annotations

import io
import os
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from bitsanywhere.arch import places
from bitsanywhere.arch.places import find, read
from bitsanywhere.errors import AuditError
from tests.arch.binaries import container, elf, entry, wheel

LIBRARY = elf({".nv_fatbin": container(entry(80))})
NAME = "pkg-1.2-py3-none-manylinux_2_24_aarch64.whl"


def write(folder: Path, data: bytes, name: str = NAME) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_all(path: Path) -> list[str]:
    found = []
    for place in find(str(path)):
        with place.open() as members:
            found += [read(each).path for each in members]
    return found


def test_wheel(tmp_path: Path) -> None:
    path = write(tmp_path, wheel({"pkg/a.so": LIBRARY, "pkg/b.py": b"", "pkg.libs/c.so.12.1": b""}))
    (place,) = find(str(path))
    assert (place.package, place.version) == ("pkg", "1.2")
    assert read_all(path) == ["pkg/a.so", "pkg.libs/c.so.12.1"]


def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trick = {"../../evil.so": LIBRARY, "/abs/evil.so": LIBRARY, "a\x1b[2J.so": LIBRARY}
    path = write(tmp_path, wheel(trick))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert len(read_all(path)) == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_folder_with_wheels_and_libraries(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(tmp_path, wheel({"pkg/a.so": LIBRARY}))
    write(inner, LIBRARY, "b.so")
    (inner / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.so")
    assert read_all(tmp_path) == ["pkg/a.so", "inner/b.so"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no wheel and no shared library"):
        list(find(str(tmp_path)))


def test_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpukit").mkdir()
    (tmp_path / "gpukit" / "_c.so").write_bytes(LIBRARY)
    info = tmp_path / "gpukit-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gpukit\nVersion: 3.1\n")
    (info / "RECORD").write_text("gpukit/_c.so,,\ngpukit/gone.so,,\ngpukit/x.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    (place,) = find("gpukit")
    assert (place.path, place.package, place.version) == ("gpukit 3.1", "gpukit", "3.1")
    with place.open() as members:
        assert [read(each).path for each in members] == ["gpukit/_c.so"]
    assert metadata.version("gpukit") == "3.1"


@pytest.mark.parametrize("name", ["no-such-package-x", "a/b/missing.whl", "../x", "-", "a b"])
def test_what_does_not_exist(name: str) -> None:
    with pytest.raises(AuditError, match="is no file, no folder and no installed package"):
        list(find(name))


def test_a_zip_by_any_name_is_read_as_one(tmp_path: Path) -> None:
    assert read_all(write(tmp_path, wheel({"a.so": LIBRARY}), "download")) == ["a.so"]


def bomb(size: int) -> bytes:
    return wheel({"a.so": bytes(size)})


def overlapping() -> bytes:
    """Two directory entries for one and the same member's data."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.so", os.urandom(5000))
        for name in ("b.so", "c.so"):
            twin = zipfile.ZipInfo(name)
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                setattr(twin, field, getattr(archive.infolist()[0], field))
            archive.filelist.append(twin)
        archive._didModify = True
    return made.getvalue()


def recompressed(method: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        archive.writestr("a.so", LIBRARY)
    return made.getvalue()


ORDINARY = wheel({"a.so": LIBRARY})
ENTRY = zipfile.ZipFile(io.BytesIO(ORDINARY)).infolist()[0]


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


def with_flag(flag: int) -> bytes:
    """The archive with a general purpose flag set in its directory."""
    data = bytearray(ORDINARY)
    data[data.rindex(b"PK\x01\x02") + 8] |= flag
    return bytes(data)


HOSTILE = {
    "bomb": bomb(50 << 20),
    "overlap": overlapping(),
    "truncated": ORDINARY[:-10],
    "empty": b"",
    "no zip": b"PK\x03\x04" + bytes(100),
    "checksum": ORDINARY.replace(number(ENTRY.CRC), b"\1\2\3\4"),
    "encrypted": with_flag(1),
    "lzma": recompressed(zipfile.ZIP_LZMA),
    "lying size": ORDINARY.replace(number(len(LIBRARY)), number(len(LIBRARY) + 9)),
    "damaged stream": ORDINARY[:60] + b"\xff" * 40 + ORDINARY[100:],
}


def test_the_sound_twin_of_the_hostile_archives_is_read(tmp_path: Path) -> None:
    assert read_all(write(tmp_path, ORDINARY)) == ["a.so"]


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_are_typed_errors(case: str, tmp_path: Path) -> None:
    with pytest.raises(AuditError):
        read_all(write(tmp_path, HOSTILE[case]))


def test_bounds_on_the_whole_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, wheel({"a.so": LIBRARY, "b.so": LIBRARY}))
    for limit in ("MAX_MEMBERS", "MAX_LIBRARIES"):
        with monkeypatch.context() as limited:
            limited.setattr(places, limit, 1)
            with pytest.raises(AuditError, match="lists 2 members"):
                read_all(path)
    monkeypatch.setattr(places, "MAX_INFLATED", len(LIBRARY))
    with pytest.raises(AuditError, match="inflate to more than"):
        read_all(path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, LIBRARY, "a.so")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AuditError, match="cannot be read"):
        read_all(path)
