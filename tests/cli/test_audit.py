"""`bitsanywhere audit` from its arguments to its exit status."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest

from bitsanywhere.cli import audit
from tests.arch.binaries import container, elf, entry

FIXTURES = Path(__file__).parents[1] / "arch" / "fixtures"


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    audit.configure_parser(parser)
    return audit.execute(parser.parse_args(words))


SM80 = str(FIXTURES / "plain_sm80.so")
SM87 = str(FIXTURES / "plain_sm87.so")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((SM80, "--device", "a100"), 0),
        ((SM80, "--device", "a100", "--device", "h100"), 1),
        ((SM80, "--device", "sm_87"), 1),
        ((SM87, "--device", "sm_87"), 0),
        ((SM80,), 0),
        ((SM80, "--require", "sm_80"), 0),
        ((SM80, "--require", "sm_80,sm_86"), 0),
        ((SM80, "--require", "sm_80,sm_87"), 1),
        ((SM80, "--device", "h100", "--require", "sm_80"), 0),
        ((SM80, SM87, "--require", "sm_80"), 1),
        ((SM80, "--device", "toaster"), 2),
        ((SM80, "--cuda", "twelve"), 2),
        (("no-such-file.whl", "--device", "h100"), 2),
        ((__file__,), 2),
    ],
)
def test_exit_status(words: tuple[str, ...], status: int) -> None:
    assert run(*words) == status


@pytest.mark.parametrize("words", [(), (SM80, "--format", "pdf"), (SM80, "--jobs", "3")])
def test_bad_usage_is_status_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2


def test_a_damaged_file_is_status_2_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.so"
    path.write_bytes(elf({".nv_fatbin": container(entry(80), size=1 << 40)}))
    assert run(str(path), "--device", "a100") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: damaged.so: the fat binary at byte")


def test_required_capabilities_are_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    run(SM80, "--device", "h100", "--require", "sm_80", "--format", "json")
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert [each["device"] for each in file["devices"]] == ["h100", "sm_80"]


def folder_of_wheels() -> list[Path]:
    folder = os.environ.get("BITSANYWHERE_TEST_WHEELS")
    return sorted(Path(folder).glob("bitsandbytes-*.whl")) if folder else []


# The architectures of the published wheels: linked code, then the PTX of the objects.
OLD = ("75 80 90", "90")
NEW = ("75 80 90 100 120", "120")
X86_OLD = ("50 52 60 61 70 75 80 86 89 90", "90")
X86_NEW = ("75 80 86 89 90 100 120", "120")
PUBLISHED = {
    ("0.46.1", "aarch64"): {
        **dict.fromkeys(("118", "120", "121", "122", "123", "124", "125", "126"), OLD),
        "128": NEW,
        "129": NEW,
    },
    ("0.46.1", "x86_64"): {
        **dict.fromkeys(("118", "120", "121", "122", "123", "124", "125", "126"), X86_OLD),
        "128": X86_NEW,
        "129": X86_NEW,
    },
    ("0.50.2", "aarch64"): {
        **dict.fromkeys(("118", "121", "124", "126"), OLD),
        "128": NEW,
        "130": ("75 80 90 100 110 120 121", "121"),
        "132": ("75 80 90 100 110 120 121", "121"),
    },
    ("0.50.2", "x86_64"): {
        **dict.fromkeys(("118", "121", "124", "126"), ("60 70 75 80 86 89 90", "90")),
        "128": ("70 75 80 86 89 90 100 120", "120"),
        "130": X86_NEW,
        "132": X86_NEW,
    },
}


@pytest.mark.skipif(not folder_of_wheels(), reason="BITSANYWHERE_TEST_WHEELS names no wheels")
@pytest.mark.parametrize("wheel", folder_of_wheels(), ids=lambda path: path.name)
class TestPublishedWheels:
    """Fetched with `pip download --no-deps --platform manylinux_2_24_aarch64` and the like."""

    def test_architectures(self, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(str(wheel), "--format", "json") == 0
        (file,) = json.loads(capsys.readouterr().out)["files"]
        machine = "aarch64" if "aarch64" in wheel.name else "x86_64"
        found = {
            each["cuda"].replace(".", ""): (
                " ".join(name.removeprefix("sm_") for name in each["registered"]["sass"]),
                " ".join(
                    name.removeprefix("compute_").split("@")[0]
                    for name in each["relocatable"]["ptx"]
                ),
            )
            for each in file["libraries"]
        }
        assert found == PUBLISHED[file["version"], machine]

    def test_orin_and_h100(self, wheel: Path) -> None:
        arm = "aarch64" in wheel.name
        assert run(str(wheel), "--device", "orin-nano", "--cuda", "12.6") == 1
        assert run(str(wheel), "--device", "sm_90", "--cuda", "12.6") == 0
        assert run(str(wheel), "--device", "gh200", "--cuda", "12.8") == (0 if arm else 1)
