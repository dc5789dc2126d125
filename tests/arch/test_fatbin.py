"""The scanner on containers made byte by byte, fed in pieces of every size."""

from __future__ import annotations

import pytest

from bitsanywhere.arch import fatbin
from bitsanywhere.arch.fatbin import scan
from bitsanywhere.arch.model import Code
from bitsanywhere.errors import AuditError
from tests.arch.binaries import LTO, LZ4, PTX, SUFFIX_A, SUFFIX_F, ZSTD, container, cubin, entry


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


SAMPLE = (
    b"\x01" * 37
    + container(
        entry(75, flags=0x11 | LZ4, packed=20),
        entry(90, PTX, isa=(8, 5), header=96, payload=b"p" * 41),
        entry(90, flags=SUFFIX_A),
        entry(100, flags=SUFFIX_F | ZSTD, packed=9, header=112),
        entry(90, LTO),
    )
    + bytes(8)
    + container(entry(87))
    + b"libcublas.so.12\0"
    + cubin(103)
    + b"\x02" * 200
)


@pytest.mark.parametrize("size", [1, 7, 64, 129, 1 << 20])
def test_finds_the_same_however_the_file_is_cut(size: int) -> None:
    found = scan(pieces(SAMPLE, size))
    assert [[code.name for code in each.codes] for each in found.found] == [
        ["sm_75", "compute_90@8.5", "sm_90a", "sm_100f", "lto_90"],
        ["sm_87"],
        ["sm_103"],
    ]
    assert [code.compression for code in found.found[0].codes] == [
        "lz4",
        "none",
        "none",
        "zstd",
        "none",
    ]
    assert found.found[0].start == 37
    assert not any(each.problem for each in found.found)
    assert {major for _, major in found.needed} == {12}


def test_a_container_ends_where_it_says() -> None:
    first = container(entry(80))
    found = scan([first + container(entry(90))]).found
    assert [(each.start, each.end) for each in found] == [
        (0, len(first)),
        (len(first), 2 * len(first)),
    ]


@pytest.mark.parametrize(
    "data",
    [
        container(entry(80), size=40),
        container(entry(80), entry(90, stated=1 << 40)),
        container(entry(80, header=72, stated=2**64 - 8)),
        container(entry(80, header=56)),
        container(entry(80, header=66)),
        container(entry(80, packed=1000)),
        container(entry(0)),
        container(entry(70000)),
        container(entry(80, PTX, isa=(65535, 0))),
        container(entry(80), size=2**64 - 16),
        container(entry(80))[:50],
    ],
)
def test_lying_sizes_are_a_problem_not_a_result(data: bytes) -> None:
    (found,) = scan([data + bytes(100)] if len(data) > 60 else [data]).found
    assert found.problem


def test_the_magic_alone_is_nothing() -> None:
    stray = container(version=9) + container(header=24) + fatbin.MAGIC * 3
    assert scan([stray + container(entry(80))]).found[-1].codes == (Code("sass", 80),)
    assert len(scan([stray + container(entry(80))]).found) == 1


def test_too_many_structures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fatbin, "MAX_STRUCTURES", 50)
    (found,) = scan([container(*[entry(80)] * 49)]).found
    assert found.codes == (Code("sass", 80),)
    with pytest.raises(AuditError, match="more than 50"):
        scan([container(*[entry(80)] * 50)])
    with pytest.raises(AuditError, match="more than 50"):
        scan([fatbin.MAGIC * 100])


@pytest.mark.parametrize(("arch", "abi"), [(87, 7), (90, 7), (90, 8), (121, 8)])
def test_cubin_header_of_both_abis(arch: int, abi: int) -> None:
    assert fatbin.cubin(cubin(arch, abi)) == Code("sass", arch)


def test_other_elf_files_are_no_cubins() -> None:
    assert fatbin.cubin(cubin(90).replace(b"\x41", b"\x00", 1)) is None
    assert fatbin.cubin(cubin(90)[:51]) is None


@pytest.mark.parametrize(
    ("name", "major"),
    [
        (b"libcudart.so.13\0", 13),
        (b"libcublasLt.so.11\0", 11),
        (b"cudart64_110.dll\0", 11),
        (b"cublas64_12.dll\0", 12),
        (b"cublasLt64_13.dll\0", 13),
    ],
)
def test_names_of_cuda_libraries(name: bytes, major: int) -> None:
    assert scan([b"\0" + name]).needed == [(1, major)]
