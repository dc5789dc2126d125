"""Every rule, on real fixtures where the compiler can make them and on built ones elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsanywhere.arch.devices import DEVICES, KNOWN_ARCHES, find_device, of_arch
from bitsanywhere.arch.dispatch import select
from bitsanywhere.arch.model import EMBEDDED, REGISTERED, RELOCATABLE, Code, Container, Library
from bitsanywhere.arch.places import find, read
from bitsanywhere.arch.rules import ERRORS, RULES, SOURCES, newest_isa, oldest_cuda
from bitsanywhere.arch.verdict import judge
from bitsanywhere.errors import InvalidArgumentError

FIXTURES = Path(__file__).parent / "fixtures"

# fixture, capability, CUDA in use, verdict, through, error
MEASURED = [
    # the nine builds that were run on an H100: see docs/named-symbol-not-found.md
    ("plain_sm80.so", "sm_90", None, "no-image", "", 209),
    ("rdc_sm80.so", "sm_90", None, "no-symbol", "", 500),
    ("rdc_sm80_ptx80.so", "sm_90", None, "rdc-jit-link", "compute_80@9.0", None),
    ("plain_sm80_ptx80.so", "sm_90", None, "ptx-jit", "compute_80@9.0", None),
    ("rdc_ptx100.so", "sm_90", None, "no-symbol", "", 500),
    ("plain_sm90a.so", "sm_90", None, "sass-exact", "sm_90a", None),
    ("plain_ptx90a.so", "sm_90", None, "ptx-jit", "compute_90a@9.0", None),
]
RULED = [
    ("plain_sm80.so", "sm_80", None, "sass-exact", "sm_80", None),
    ("plain_sm80.so", "sm_86", None, "sass-minor", "sm_80", None),
    ("plain_sm80.so", "sm_89", "12.6", "sass-minor", "sm_80", None),
    ("plain_sm80.so", "sm_75", None, "no-image", "", 209),
    ("plain_sm80.so", "sm_87", "12.6", "tegra-undocumented", "sm_80", 209),
    ("plain_sm80.so", "sm_87", "13.2", "tegra-undocumented", "sm_80", 209),
    ("rdc_sm80.so", "sm_87", "12.6", "tegra-undocumented", "sm_80", 500),
    ("plain_sm87.so", "sm_87", None, "sass-exact", "sm_87", None),
    ("plain_sm87.so", "sm_89", None, "tegra-undocumented", "sm_87", 209),
    ("plain_sm80_ptx80.so", "sm_87", "13.0", "ptx-jit", "compute_80@9.0", None),
    ("rdc_sm80_ptx80.so", "sm_87", "13.0", "rdc-jit-link", "compute_80@9.0", None),
    ("plain_sm80_ptx80.so", "sm_87", "12.6", "ptx-too-new", "compute_80@9.0", 222),
    ("plain_ptx75.so", "sm_121", "12.9", "ptx-too-new", "compute_75@9.0", 222),
    ("plain_ptx75.so", "sm_121", "13.0", "ptx-jit", "compute_75@9.0", None),
    ("plain_sm90a.so", "sm_89", None, "no-image", "", 209),
    ("plain_sm90a.so", "sm_100", None, "no-image", "", 209),
    ("plain_ptx90a.so", "sm_100", None, "no-image", "", 209),
    ("plain_sm100f.so", "sm_100", None, "sass-exact", "sm_100f", None),
    ("plain_sm100f.so", "sm_103", None, "family", "sm_100f", None),
    ("plain_sm100f.so", "sm_110", None, "no-image", "", 209),
    ("plain_sm100f.so", "sm_120", None, "no-image", "", 209),
    ("plain_zstd.so", "sm_75", "12.3", "compression-driver", "sm_75", 200),
    ("plain_zstd.so", "sm_75", "12.4", "sass-exact", "sm_75", None),
    ("plain_lz4.so", "sm_75", "12.3", "sass-exact", "sm_75", None),
    ("sm87.cubin", "sm_87", None, "sass-exact", "sm_87", None),
    ("two.fatbin", "sm_100", None, "ptx-jit", "compute_90@9.0", None),
    ("lto.fatbin", "sm_90", None, "no-image", "", 209),
]


@pytest.mark.parametrize(("name", "device", "cuda", "verdict", "via", "error"), MEASURED + RULED)
def test_fixture(
    name: str, device: str, cuda: str | None, verdict: str, via: str, error: int | None
) -> None:
    (place,) = find(str(FIXTURES / name))
    with place.open() as (member,):
        library = read(member)
    pair = (int(cuda.split(".")[0]), int(cuda.split(".")[1])) if cuda else None
    found = judge(library, find_device(device), pair)
    code = ERRORS[found.error].code if found.error else None
    assert (found.verdict, found.via, code) == (verdict, via, error)
    assert found.covered is (error is None)


def sass(arch: int, suffix: str = "", compression: str = "none") -> Code:
    return Code("sass", arch, suffix, None, compression)


def ptx(arch: int, isa: tuple[int, int] = (8, 0), suffix: str = "") -> Code:
    return Code("ptx", arch, suffix, isa)


def library(
    *registered: list[Code], relocatable: list[list[Code]] | None = None, **more
) -> Library:
    containers = [Container(REGISTERED, tuple(each)) for each in registered]
    containers += [Container(RELOCATABLE, tuple(each)) for each in relocatable or []]
    fields = {"path": "lib.so", "system": "linux", "machine": "aarch64", **more}
    return Library(containers=tuple(containers), **fields)


def verdict(made: Library, device: str, cuda: tuple[int, int] | None = None) -> str:
    return judge(made, find_device(device), cuda).verdict


def test_one_container_without_the_chip_is_a_gap() -> None:
    """A union over the library would hide it."""
    found = judge(library([sass(80), sass(90)], [sass(80)]), find_device("h100"))
    assert (found.verdict, found.judged, found.gaps) == ("no-image", 2, 1)


def test_containers_for_one_family_only_are_left_out() -> None:
    made = library([sass(80), sass(90)], [sass(90, "a")])
    found = judge(made, find_device("a100"))
    assert (found.verdict, found.optional, found.gaps) == ("sass-exact", 1, 0)
    assert judge(made, find_device("h100")).optional == 0
    assert verdict(library([sass(90, "a")]), "a100") == "no-image"


def test_link_needs_every_object() -> None:
    whole = library([sass(80)], relocatable=[[ptx(80)], [sass(80), ptx(80)]])
    partial = library([sass(80)], relocatable=[[ptx(80)], [sass(80)]])
    assert verdict(whole, "h100") == "rdc-jit-link"
    assert verdict(partial, "h100") == "no-symbol"


def test_link_with_ptx_that_the_driver_does_not_know() -> None:
    made = library([sass(80)], relocatable=[[ptx(80, (9, 0))]])
    assert verdict(made, "h100", (12, 8)) == "ptx-too-new"
    assert verdict(made, "h100", (13, 0)) == "rdc-jit-link"


def test_a_weak_link_decides() -> None:
    assert verdict(library([sass(90)], [sass(90), ptx(80)], [ptx(80)]), "h100") == "ptx-jit"


def test_unknown_capability() -> None:
    assert verdict(library([sass(130)]), "sm_131") == "unknown-arch"
    assert verdict(library([sass(131)]), "sm_131") == "sass-exact"
    assert verdict(library([ptx(80)]), "sm_131") == "ptx-jit"
    assert verdict(library([sass(80)]), "sm_131") == "no-image"


def test_thor_by_its_two_names() -> None:
    assert find_device("sm_101") == find_device("sm_110")
    assert verdict(library([sass(101)]), "thor") == "sass-exact"
    assert verdict(library([sass(100)]), "thor") == "no-image"


@pytest.mark.parametrize(
    ("arch", "device", "expected"),
    [
        (50, "jetson-nano", "tegra-undocumented"),
        (60, "jetson-tx2", "tegra-undocumented"),
        (70, "xavier-nx", "tegra-undocumented"),
        (72, "sm_75", "tegra-undocumented"),
        (70, "t4", "sass-minor"),
        (120, "gb10", "sass-minor"),
        (100, "b300", "sass-minor"),
    ],
)
def test_tegra_and_desktop(arch: int, device: str, expected: str) -> None:
    assert verdict(library([sass(arch)]), device) == expected


def test_other_system() -> None:
    made = library([sass(87)], machine="x86_64")
    assert verdict(made, "orin-nano") == "platform-tag"
    assert verdict(made, "sm_87") == "sass-exact"
    assert verdict(library([sass(87)], system="", machine=""), "orin-nano") == "sass-exact"


def test_other_cuda_major() -> None:
    needs = library([sass(90)], needs=(12,), cuda=(12, 6))
    assert judge(needs, find_device("h100"), (13, 0)).error == "loader"
    assert verdict(needs, "h100", (12, 1)) == "sass-exact"
    newer = library([sass(90)], cuda=(13, 0))
    assert judge(newer, find_device("h100"), (12, 6)).error == "driver"
    assert verdict(newer, "h100", (13, 2)) == "sass-exact"


def test_embedded_code_is_judged_together() -> None:
    parts = tuple(Container(EMBEDDED, (sass(arch),)) for arch in (80, 90))
    made = Library("lib.so", "linux", "x86_64", parts)
    assert verdict(made, "h100") == "sass-exact"
    assert verdict(made, "t4") == "no-image"


def test_driver_that_is_silently_assumed() -> None:
    made = library([ptx(80, (8, 7))])
    assert judge(made, find_device("h100")).driver == (12, 8)
    assert judge(made, find_device("h100"), (12, 8)).driver is None
    assert judge(made, find_device("h100"), (12, 4)).driver == (12, 8)
    assert judge(library([sass(90, "", "zstd")]), find_device("h100")).driver == (12, 4)


@pytest.mark.parametrize(
    ("cuda", "isa"),
    [
        ((11, 8), (7, 8)),
        ((12, 0), (8, 0)),
        ((12, 5), (8, 5)),
        ((12, 6), (8, 5)),
        ((12, 8), (8, 7)),
        ((12, 9), (8, 8)),
        ((13, 0), (9, 0)),
        ((13, 2), (9, 2)),
    ],
)
def test_ptx_of_each_cuda(cuda: tuple[int, int], isa: tuple[int, int]) -> None:
    """As found in the published wheels, whose libraries name their CUDA."""
    assert newest_isa(cuda) == isa
    assert newest_isa(oldest_cuda(isa)) == isa
    assert oldest_cuda(isa) <= cuda


class TestDispatch:
    variants = [f"p/lib_cuda{cuda}.so" for cuda in (118, 124, 128, 130)]

    @pytest.mark.parametrize(
        ("cuda", "expected"),
        [((12, 8), 128), ((12, 6), 124), ((12, 9), 128), ((12, 1), 124), ((13, 2), 130)],
    )
    def test_nearest_of_the_same_major(self, cuda: tuple[int, int], expected: int) -> None:
        found = select(self.variants, cuda, "bitsandbytes", "0.50.2")
        assert found == ([f"p/lib_cuda{expected}.so"], [])

    def test_older_bitsandbytes_wants_its_exact_version(self) -> None:
        assert select(self.variants, (12, 6), "bitsandbytes", "0.46.1") == ([], ["p/lib_cuda*.so"])
        found = select(self.variants, (12, 4), "bitsandbytes", "0.46.1")
        assert found == (["p/lib_cuda124.so"], [])

    def test_no_variant_of_the_major(self) -> None:
        assert select(self.variants, (14, 0)) == ([], ["p/lib_cuda*.so"])

    def test_a_library_without_a_version_is_always_loaded(self) -> None:
        assert select(["p/lib.so", *self.variants], (14, 0))[0] == ["p/lib.so"]
        assert len(select(["p/lib.so", *self.variants], None)[0]) == 5

    def test_libraries_for_other_makers_are_not_loaded(self) -> None:
        others = ["p/lib_rocm72.so", "p/lib_xpu2025.so", "p/lib_cpu.so"]
        assert select([*others, *self.variants], (12, 4))[0] == ["p/lib_cpu.so", self.variants[1]]


def test_the_device_table_is_consistent() -> None:
    names = [each.name for each in DEVICES]
    assert len(set(names)) == len(names)
    assert {each.arch for each in DEVICES} <= KNOWN_ARCHES
    assert all(find_device(each.name) is each for each in DEVICES)
    assert {each.arch for each in DEVICES if each.tegra} == {53, 62, 72, 87, 110}
    assert find_device("Jetson-Orin-Nano").arch == 87
    assert of_arch(87).tegra
    assert not of_arch(87).hosts


@pytest.mark.parametrize("name", ["orin", "sm_", "87", "sm_1234", "h1000", ""])
def test_unknown_device_names(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="no device is called"):
        find_device(name)


def test_the_rule_table_is_consistent() -> None:
    for rule in RULES.values():
        assert rule.evidence in {"documented", "reported", "inferred", "measured"}
        assert all(key in SOURCES for key in (*rule.sources, *rule.contrary))
        assert not rule.error or rule.error in ERRORS
        assert bool(rule.fix) is not rule.covered
    used = {key for rule in RULES.values() for key in (*rule.sources, *rule.contrary)}
    assert used == set(SOURCES)
