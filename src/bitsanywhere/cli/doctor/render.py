"""The diagnosis as text for a bug report, as JSON, and the one next step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bitsanywhere.cli.doctor.collect import DeviceReport, Diagnosis


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """The diagnosis as plain data."""
    return {
        "works": found.works,
        "next_step": next_step(found),
        "software": found.software,
        "machine": found.machine,
        "problem": found.problem,
        "devices": [
            {
                **each.facts,
                "works": each.works,
                "problem": each.problem,
                "roundtrip": _without_kind(each.roundtrip),
                "ops": [_without_kind(line) for line in each.ops],
                PEER_KEY: each.peer,
            }
            for each in found.devices
        ],
    }


PEER_KEY = "bitsandbytes_by_itself"


def as_text(found: Diagnosis) -> str:
    """The diagnosis as aligned text."""
    lines = ["bitsanywhere doctor", ""]
    lines += _rows(found.software.items())
    lines += ["", *_rows(_machine(found))]
    for each in found.devices:
        lines += ["", *_device(each)]
    step = next_step(found)
    lines += ["", "quantization works here" if found.works else "quantization does NOT work here"]
    lines += [f"next: {step}"] if step else []
    return "\n".join(lines) + "\n"


def explain_op(found: Diagnosis, op: str) -> str:
    """Which implementation an op takes on each device, and why the others do not."""
    lines = []
    for device in found.devices:
        for line in device.ops:
            if line["op"] == op:
                lines.append(f"{op} on {line['device']}: {line['implementation']}")
                lines += [f"  because {reason}" for reason in line["reasons"]]
    return "\n".join(lines) + "\n"


def next_step(found: Diagnosis) -> str:
    """The one command or action that helps most; "" if nothing is missing."""
    machine = found.machine
    if found.problem or not found.devices:
        return "Reinstall torch: looking at this machine failed."
    driver = machine["driver_cuda"].get("found")
    gpus = [each for each in found.devices if each.facts["arch"]]
    if driver and not gpus:
        return "Install a torch built for CUDA: there is a driver, but torch sees no GPU."
    packs = machine["packs"].get("found")
    if gpus and "found" not in machine["nvrtc"] and not packs:
        major = (machine["torch_cuda"] or driver or "12").split(".")[0]
        return f'pip install "bitsanywhere[cuda{major}]"'
    if "numba" not in found.software:
        return 'pip install "bitsanywhere[cpu]"'
    broken = next((each for each in found.devices if not each.works), None)
    return f"Report what is said above of {broken.facts['device']}." if broken else ""


def _machine(found: Diagnosis) -> Iterable[tuple[str, str]]:
    """Rows on the driver, the compiler, the cache and the packs."""
    machine = found.machine
    if not machine:
        yield "machine", found.problem or "not looked at"
        return
    yield "torch's CUDA", machine["torch_cuda"] or "none"
    yield "driver's CUDA", _told(machine["driver_cuda"], str)
    yield (
        "NVRTC",
        _told(
            machine["nvrtc"],
            lambda it: f"{it['version']} ({it['path']}), {it['archs'][0]} to {it['archs'][-1]}",
        ),
    )
    yield (
        "cache",
        _told(
            machine["cache"],
            lambda it: f"{it['path']}: {it['files']} files, {it['megabytes']} MB",
        ),
    )
    yield "packs", _told(machine["packs"], lambda it: "; ".join(it) or "none")


def _device(report: DeviceReport) -> list[str]:
    """The paragraph on one device."""
    facts, trip = report.facts, report.roundtrip
    rows: list[tuple[str, str]] = []
    if facts["arch"]:
        kind = ", integrated" if facts.get("integrated") else ""
        rows.append(
            (
                "capability",
                f"{facts['arch'] // 10}.{facts['arch'] % 10}, {facts['gigabytes']} GB{kind}",
            )
        )
    elif "threads" in facts:
        rows.append(("threads", str(facts["threads"])))
    if trip is not None:
        word = "right" if trip["ok"] else "WRONG"
        rows.append(
            (
                "NF4 roundtrip",
                f"{word}: relative error {trip['error']:.3f}, product {trip['matmul_error']:.1e}, "
                f"{trip['seconds']:.1f} s",
            )
        )
    if report.problem:
        rows.append(("PROBLEM", report.problem))
    rows += [
        (line["op"], "; ".join([line["implementation"], *line["reasons"]])) for line in report.ops
    ]
    if report.peer is not None:
        rows.append(("bitsandbytes", _peer(report.peer)))
    return [f"{facts['device']}: {facts['name']}", *_rows(rows)]


def _peer(peer: dict[str, Any]) -> str:
    """What bitsandbytes could do without us."""
    if "problem" in peer:
        return peer["problem"]
    if peer["covered"]:
        return f"{peer['version']} has code for this chip ({peer['verdict']}, {peer['library']})"
    error = f": {peer['error']}" if peer["error"] else ""
    return f"{peer['version']} cannot run here by itself ({peer['verdict']}){error}; we serve it"


def _told(part: dict[str, Any], words: Any) -> str:
    """What was found, in words, or why it was not."""
    return words(part["found"]) if "found" in part else part["problem"]


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Aligned, indented rows."""
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in listed]


def _without_kind(line: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if line is None else {key: value for key, value in line.items() if key != "kind"}
