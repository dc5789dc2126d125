"""`bitsanywhere doctor`: real probes, dying probes, and what the report says of them."""

from __future__ import annotations

import argparse
import getpass
import json
import platform
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitsanywhere.cli import doctor
from bitsanywhere.cli.doctor import collect, render
from bitsanywhere.cli.doctor.collect import DeviceReport, Diagnosis, Outcome, diagnose, probe
from bitsanywhere.cli.doctor.probe import SAMPLES
from bitsanywhere.ops.registry import OPS
from bitsanywhere.version import __version__

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
MACHINE: dict[str, Any] = {
    "torch": "2.9.0",
    "torch_cuda": "12.6",
    "driver_cuda": {"found": "12.6"},
    "nvrtc": {"found": {"version": "12.6", "path": "<env>/libnvrtc.so", "archs": ["sm_50"]}},
    "packs": {"found": []},
    "cache": {"found": {"path": "~/.cache", "files": 3, "megabytes": 0.5}},
}  # fmt: skip
GOOD = {"kind": "roundtrip", "ok": True, "error": 0.09, "matmul_error": 1e-7, "seconds": 1.0}
CPU = {"device": "cpu", "name": "neon", "arch": None, "threads": 6}
ORIN = {
    "device": "cuda:0", "name": "Orin", "arch": 87, "gigabytes": 7.4, "integrated": True,
}  # fmt: skip


def op(name: str, device: str, implementation: str, *reasons: str) -> dict[str, Any]:
    fields = {"op": name, "device": device, "implementation": implementation}
    return {"kind": "op", **fields, "reasons": list(reasons)}


@pytest.fixture
def orin() -> Diagnosis:
    peer = {
        "version": "0.50.2",
        "covered": False,
        "verdict": "tegra-undocumented",
        "via": "sm_80",
        "library": "libbitsandbytes_cuda126.so",
        "error": "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found",
        "reason": "because",
    }
    cpu = DeviceReport(CPU, (op("gemm_4bit", "cpu", "cpu kernel"),), GOOD, "", None)
    ops = (op("gemm_4bit", "cuda:0", "torch reference", "K is odd"),)
    gpu = DeviceReport(ORIN, ops, GOOD, "", peer)
    return Diagnosis({"bitsanywhere": "0.1.0", "numba": "0.6"}, MACHINE, "", (cpu, gpu))


@pytest.fixture(scope="module")
def here() -> Diagnosis:
    return diagnose()


def run(monkeypatch: pytest.MonkeyPatch, found: Diagnosis, *words: str) -> int:
    monkeypatch.setattr(doctor, "diagnose", lambda: found)
    parser = argparse.ArgumentParser()
    doctor.configure_parser(parser)
    return doctor.execute(parser.parse_args(words))


class TestThisMachine:
    def test_quantization_works_here(self, here: Diagnosis) -> None:
        assert here.works, render.as_text(here)
        cpu = here.devices[0]
        assert cpu.facts["device"] == "cpu"
        assert {line["op"] for line in cpu.ops} == set(OPS)
        assert cpu.roundtrip is not None
        assert 0.05 < cpu.roundtrip["error"] < 0.12

    def test_the_report_is_json_and_names_nobody(self, here: Diagnosis) -> None:
        text = json.dumps(render.as_dict(here)) + render.as_text(here)
        assert json.loads(json.dumps(render.as_dict(here)))["works"] is True
        assert str(Path.home()) + "/" not in text
        assert sys.prefix not in text
        if len(platform.node()) > 3:
            assert platform.node() not in text
        if getpass.getuser() != "root":
            assert getpass.getuser() not in text

    def test_every_op_with_a_sample_exists(self) -> None:
        assert set(SAMPLES) <= set(OPS)


def interpreter(folder: Path, script: str) -> str:
    """A program that stands in for Python and does not do what it is asked."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


LINE = """echo '{"kind": "op", "op": "x"}'; echo 'noise'"""


@pytest.mark.skipif(sys.platform == "win32", reason="stands in for Python with a shell script")
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (f"{LINE}; kill -SEGV $$", "crashed with SIGSEGV"),
        (f"{LINE}; exec sleep 60", "no answer within 1 s"),
        (f"{LINE}; echo Traceback >&2; echo 'E: /home/me/x y' >&2; exit 1", "E: .../x y"),
        (f"{LINE}; exit 3", "ended with status 3"),
        (LINE, ""),
    ],
)
def test_a_dying_probe_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    monkeypatch.setattr(collect.sys, "executable", interpreter(tmp_path, script))
    outcome = probe("cpu", 1)
    assert outcome == Outcome(({"kind": "op", "op": "x"},), problem)


def test_a_machine_that_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "probe", lambda *_: Outcome((), "crashed with SIGABRT"))
    found = diagnose()
    assert run(monkeypatch, found) == 1
    shown = capsys.readouterr().out
    assert "crashed with SIGABRT" in shown
    assert "quantization does NOT work here" in shown
    assert "next: " in shown


def test_text_on_an_orin(
    orin: Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, orin) == 0
    shown = capsys.readouterr().out
    assert "0.50.2 cannot run here by itself (tegra-undocumented): CUDA error 500" in shown
    assert "we serve it" in shown
    assert "8.7, 7.4 GB, integrated" in shown
    assert "next:" not in shown


@pytest.mark.parametrize(
    "trip",
    [
        {**GOOD, "ok": False},
        None,
    ],
)
def test_a_device_that_computes_wrongly_is_a_failure(
    orin: Diagnosis, trip: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(orin.devices[1], roundtrip=trip)
    found = replace(orin, devices=(orin.devices[0], broken))
    assert run(monkeypatch, found, "--json") == 1
    assert "cuda:0" in render.next_step(found)


def test_explain(
    orin: Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, orin, "--explain", "gemm_4bit") == 0
    assert capsys.readouterr().out == (
        "gemm_4bit on cpu: cpu kernel\ngemm_4bit on cuda:0: torch reference\n  because K is odd\n"
    )
    assert run(monkeypatch, orin, "--explain", "gemm_5bit") == 2
    assert "Known: gemm_4bit." in capsys.readouterr().err


def test_json(
    orin: Diagnosis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, orin, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    assert found["devices"][1]["bitsandbytes_by_itself"]["covered"] is False
    assert found["devices"][1]["ops"][0]["reasons"] == ["K is odd"]


class TestNextStep:
    def test_torch_without_cuda_under_a_driver(self, orin: Diagnosis) -> None:
        found = replace(orin, devices=orin.devices[:1])
        assert "Install a torch built for CUDA" in render.next_step(found)

    def test_no_compiler_and_no_pack(self, orin: Diagnosis) -> None:
        machine = {**MACHINE, "nvrtc": {"problem": "none found"}}
        assert render.next_step(replace(orin, machine=machine)) == (
            'pip install "bitsanywhere[cuda12]"'
        )
        machine = {**machine, "packs": {"found": ["sm_87"]}}
        assert render.next_step(replace(orin, machine=machine)) == ""

    def test_no_numba(self, orin: Diagnosis) -> None:
        found = replace(orin, software={"bitsanywhere": "0.1.0"})
        assert render.next_step(found) == 'pip install "bitsanywhere[cpu]"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{Path.home()}/.cache/x y", "~/.cache/x y"),
        (f"{sys.prefix}/lib/a.so", "<env>/lib/a.so"),
        ("/usr/lib/libcuda.so.1 is", "/usr/lib/libcuda.so.1 is"),
        ("in /data/alice/venv/lib/a.so:", "in .../a.so:"),
        (r"C:\Users\Alice\venv\a.dll not found", ".../a.dll not found"),
        ("1/2 and a/b/c", "1/2 and a/b/c"),
        ("https://docs.nvidia.com/a/b", "https://docs.nvidia.com/a/b"),
    ],
)
def test_what_names_the_user_is_taken_out(text: str, expected: str) -> None:
    assert collect.scrub(text) == expected


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("doctor-*.txt")), ids=lambda path: path.name)
def test_the_documented_examples_are_of_today(path: Path) -> None:
    """They are output of this version: its ops, its number, and nothing that names anyone."""
    text = path.read_text(encoding="utf-8")
    shown = set(re.findall(r"^  (\w+) +(?:c\w+ kernel|torch reference)", text, re.MULTILINE))
    assert shown == set(SAMPLES)
    assert re.search(rf"^  bitsanywhere +{re.escape(__version__)}$", text, re.MULTILINE)
    assert text.endswith("quantization works here\n")
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
