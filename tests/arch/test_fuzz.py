"""Files made to break the reader: every one ends in a report or in an `AuditError`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitsanywhere.arch.fatbin import scan
from bitsanywhere.errors import AuditError
from tests.arch.binaries import container, elf, entry, pe, wheel
from tests.arch.fuzzing import check, mutate, seeds

RELAXED = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NAMES = st.sampled_from([".nv_fatbin", "__nv_relfatbin", ".rodata", ".dynstr", ".nv_fatb", "x"])
WORDS = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
ENTRIES = st.builds(
    entry,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    flags=st.integers(0, 2**64 - 1),
    packed=st.integers(0, 2**32 - 1),
    header=st.sampled_from([0, 56, 64, 65, 72, 4096]),
    stated=st.none() | WORDS,
    payload=st.binary(max_size=40),
)
CONTAINERS = st.builds(
    lambda entries, size: container(*entries, size=size),
    st.lists(ENTRIES, max_size=4),
    st.none() | WORDS,
)
SECTIONS = st.dictionaries(NAMES, CONTAINERS | st.binary(max_size=99), max_size=4)
CLAIMS = st.dictionaries(NAMES | st.just(".shstrtab"), st.tuples(WORDS, WORDS), max_size=2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "pkg-1-py3-none-any.bin"


@RELAXED
@given(sections=SECTIONS, claims=CLAIMS, table=st.none() | WORDS)
def test_elf_files_that_lie(
    place: Path, sections: dict[str, bytes], claims: dict, table: int | None
) -> None:
    check(elf(sections, claims=claims, table_at=table), place)


@RELAXED
@given(sections=SECTIONS, cut=st.integers(0, 3000), name=st.text(max_size=9))
def test_wheels_of_damaged_libraries(
    place: Path, sections: dict[str, bytes], cut: int, name: str
) -> None:
    # what writes the archive does not take a NUL
    member = name.encode("utf-8", "replace").decode().replace("\0", "_") + ".so"
    check(wheel({member: pe(sections)[:cut], "b.so": elf(sections)}), place)


@RELAXED
@given(data=st.binary(max_size=300), pick=st.integers(0, 7))
def test_any_bytes_at_all(place: Path, data: bytes, pick: int) -> None:
    check(data, place)
    check(seeds()[pick][:64] + data, place)


@RELAXED
@given(seed=st.integers(0, 2**32), pick=st.integers(0, 7))
def test_mutated_files(place: Path, seed: int, pick: int) -> None:
    check(mutate(seeds()[pick], random.Random(seed)), place)


def test_the_unmutated_files_are_read(place: Path) -> None:
    """Otherwise the tests above would fuzz nothing but the first check."""
    refused = [number for number, data in enumerate(seeds()) if check(data, place) is None]
    assert refused == [6]


@RELAXED
@given(data=st.lists(CONTAINERS | st.binary(max_size=50), max_size=6), size=st.integers(1, 99))
def test_cutting_a_file_into_pieces_changes_nothing(data: list[bytes], size: int) -> None:
    whole = b"".join(data)
    cut = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert scan(cut).found == scan([whole]).found


@pytest.mark.parametrize(
    "filler", [container(), container(entry(80)), b"\x7fELF\x02\x01\x01", b"libcublas.so.12\0"]
)
def test_files_that_keep_the_reader_busy_are_cut_short(filler: bytes) -> None:
    """Without a bound, 100 MB of any of these takes minutes."""
    piece = filler * (1 + (1 << 20) // len(filler))

    def endless() -> object:
        while True:
            yield piece

    with pytest.raises(AuditError, match="more than"):
        scan(endless())
