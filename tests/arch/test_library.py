"""Libraries: sections decide what a fat binary is for, and damage is a typed error."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bitsanywhere.arch.library import read_library
from bitsanywhere.arch.model import EMBEDDED, REGISTERED, RELOCATABLE, Library, compressions, names
from bitsanywhere.errors import AuditError
from tests.arch.binaries import PTX, container, cubin, elf, entry, pe

FIXTURES = Path(__file__).parent / "fixtures"


def read(data: bytes, name: str = "lib.so") -> Library:
    return read_library(name, lambda: io.BytesIO(data), len(data))


def fixture(name: str) -> Library:
    return read((FIXTURES / name).read_bytes(), name)


EXPECTED = {
    # name: machine code and PTX, registered; then relocatable
    "plain_sm80.so": (("sm_80",), (), (), ()),
    "plain_sm87.so": (("sm_87",), (), (), ()),
    "plain_sm80_ptx80.so": (("sm_80",), ("compute_80@9.0",), (), ()),
    "plain_sm90a.so": (("sm_90a",), (), (), ()),
    "plain_sm100f.so": (("sm_100f",), (), (), ()),
    "plain_ptx90a.so": ((), ("compute_90a@9.0",), (), ()),
    "plain_ptx75.so": ((), ("compute_75@9.0",), (), ()),
    "plain_zstd.so": (("sm_75",), ("compute_75@9.0",), (), ()),
    "plain_lz4.so": (("sm_75",), ("compute_75@9.0",), (), ()),
    "rdc_sm80.so": (("sm_80",), (), ("sm_80",), ()),
    "rdc_sm80_ptx80.so": (("sm_80",), (), ("sm_80",), ("compute_80@9.0",)),
    "rdc_ptx100.so": (("sm_100",), (), ("sm_100",), ("compute_100@9.0",)),
    "several_cuda126.so": (("sm_75", "sm_80", "sm_90"), ("compute_90@9.0",), (), ()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_cuda_compiler_made(name: str) -> None:
    library = fixture(name)
    registered, relocatable = library.region(REGISTERED), library.region(RELOCATABLE)
    assert (
        names(registered, "sass"),
        names(registered, "ptx"),
        names(relocatable, "sass"),
        names(relocatable, "ptx"),
    ) == EXPECTED[name]
    assert not library.region(EMBEDDED)
    assert (library.system, library.machine) == ("linux", "x86_64")
    assert library.relocatable is name.startswith("rdc_")


def test_compression_is_told_apart() -> None:
    assert compressions(fixture("plain_zstd.so").containers) == ("zstd",)
    assert "lz4" in compressions(fixture("plain_lz4.so").containers)
    assert compressions(fixture("plain_sm80_ptx80.so").containers) == ("none",)


def test_files_that_are_gpu_code_only() -> None:
    assert names(fixture("sm87.cubin").containers, "sass") == ("sm_87",)
    assert names(fixture("lto.fatbin").containers, "lto") == ("lto_90",)
    two = fixture("two.fatbin").containers
    assert (names(two, "sass"), names(two, "ptx")) == (("sm_80",), ("compute_90@9.0",))
    assert {each.region for each in two} == {EMBEDDED}


def test_windows_dll() -> None:
    data = pe(
        {
            ".text": b"\x90" * 700,
            ".rdata": b"\0cublas64_12.dll\0",
            "__nv_rel": container(entry(90, PTX)),
            ".nv_fatb": container(entry(80), entry(90)),
        }
    )
    library = read(data, "pkg/lib_cuda126.dll")
    assert (library.system, library.machine) == ("windows", "x86_64")
    assert names(library.region(REGISTERED), "sass") == ("sm_80", "sm_90")
    assert names(library.region(RELOCATABLE), "ptx") == ("compute_90@8.5",)
    assert (library.cuda, library.needs) == ((12, 6), (12,))


def test_a_real_fat_binary_inside_a_dll() -> None:
    library = read(pe({".nv_fatb": (FIXTURES / "two.fatbin").read_bytes()}))
    assert names(library.region(REGISTERED), "ptx") == ("compute_90@9.0",)


def test_sections_decide_and_equal_containers_are_counted() -> None:
    one = container(entry(80))
    data = elf(
        {
            ".nv_fatbin": one * 3 + container(entry(90)),
            ".rodata": container(entry(75)) + cubin(89),
            ".dynstr": b"\0libcudart.so.12\0libcublas.so.12\0",
            ".text": b"libcudart.so.11\0",
        }
    )
    library = read(data)
    assert [(each.region, each.count) for each in library.containers] == [
        (REGISTERED, 3),
        (REGISTERED, 1),
        (EMBEDDED, 1),
        (EMBEDDED, 1),
    ]
    assert library.machine == "aarch64"
    # a name in .text is no dependency
    assert library.needs == (12,)


def test_malformed_bytes_outside_gpu_sections_are_no_fat_binary() -> None:
    data = elf({".rodata": container(entry(80, header=8)), ".nv_fatbin": container(entry(90))})
    assert [each.codes[0].name for each in read(data).containers] == ["sm_90"]


GOOD = elf({".nv_fatbin": container(entry(80), entry(90)), ".rodata": bytes(64)})
HOSTILE = {
    "truncated header": GOOD[:60],
    "truncated table": GOOD[:-1],
    "section table far away": elf({".nv_fatbin": container()}, table_at=1 << 62),
    "section of 4 GB": elf(
        {".nv_fatbin": container(entry(80))}, claims={".nv_fatbin": (64, 1 << 32)}
    ),
    "section at the end of the address space": elf(
        {".nv_fatbin": container(entry(80))}, claims={".nv_fatbin": (2**64 - 8, 8)}
    ),
    "overlapping sections": elf(
        {".nv_fatbin": container(entry(80)), "__nv_relfatbin": bytes(8)},
        claims={"__nv_relfatbin": (70, 80)},
    ),
    "container past its section": elf(
        {".nv_fatbin": container(entry(80), size=400) + bytes(40), ".rodata": bytes(500)}
    ),
    "container that hides the next section": elf(
        {
            ".rodata": container(entry(80, stated=300), size=364),
            ".nv_fatbin": container(entry(90)),
            ".data": bytes(600),
        }
    ),
    "entry that contradicts its container": elf(
        {".nv_fatbin": container(entry(80, stated=1 << 33)) + bytes(100)}
    ),
    "names out of bounds": elf({".a": b"x"}, claims={".shstrtab": (0, 1 << 40)}),
    "DOS header only": b"MZ" + bytes(20),
    "PE header far away": b"MZ".ljust(0x3C, b"\0") + b"\xff\xff\xff\x7f" + bytes(64),
    "no PE header": b"MZ".ljust(0x3C, b"\0") + b"\x40\0\0\0" + bytes(64),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_damage_is_a_typed_error_that_names_the_file(case: str) -> None:
    with pytest.raises(AuditError, match=r"^evil\.so: "):
        read(HOSTILE[case], "evil.so")


def test_the_sound_twin_of_the_hostile_files_is_read() -> None:
    assert names(read(GOOD).containers, "sass") == ("sm_80", "sm_90")


def test_32_bit_and_text_files_hold_nothing() -> None:
    assert read(b"\x7fELF\x01\x01\x01" + bytes(60)).containers == ()
    assert read(b"GROUP ( libfoo.so.1 )").containers == ()
    assert read(b"").containers == ()


def test_tables_far_from_the_end_are_read_again() -> None:
    """Section names in the middle of a file, further from both ends than is remembered."""
    middle = 3 << 20
    sections = {".first": bytes(4 << 20), ".nv_fatbin": container(entry(87)), ".z": bytes(6 << 20)}
    data = bytearray(elf(sections))
    names_at = data.rindex(b"\0.first\0.nv_fatbin")
    text = bytes(data[names_at : names_at + 40])
    row = data.index(names_at.to_bytes(8, "little"), len(data) - 64)
    data[row : row + 8] = middle.to_bytes(8, "little")
    data[middle : middle + len(text)] = text
    opened = []

    def open_stream() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(data)

    library = read_library("lib.so", open_stream, len(data))
    assert names(library.region(REGISTERED), "sass") == ("sm_87",)
    assert len(opened) == 2
