"""Runs the suites of a plan, each in processes of its own; keeps each as soon as it is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bitsanywhere.validate import store
from bitsanywhere.validate.folder import check_model, model_folder
from bitsanywhere.validate.job import Job
from bitsanywhere.validate.machine import machine
from bitsanywhere.validate.plan import PEER, Line, Plan, module_of, revive

Runner = Callable[[Job], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """One suite.

    Attributes:
        columns: what was measured, by column, as the suite's Result.
        errors: why a column was not measured.
        lines: the pass lines; empty where a column that they need was not measured.
        seconds: that its columns took, added up.
        machine: where and with what; see `machine`.
        reused: whether an earlier run measured it.
    """

    suite: str
    columns: dict[str, Any]
    errors: dict[str, str]
    lines: tuple[Line, ...]
    seconds: float
    machine: dict[str, Any]
    reused: bool = False

    @property
    def passed(self) -> bool:
        """Whether the suite has lines and every one is passed."""
        return bool(self.lines) and all(line.passed for line in self.lines)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "suite": self.suite,
            "passed": self.passed,
            "lines": [asdict(line) | {"passed": line.passed} for line in self.lines],
            "errors": self.errors,
            "columns": {name: asdict(result) for name, result in self.columns.items()},
            "seconds": self.seconds,
            "machine": self.machine,
        }


def peer_installed() -> bool:
    """Whether a real bitsandbytes is installed, whoever answers to its name in this process."""
    return PathFinder.find_spec(PEER) is not None


def validate(plan: Plan, runner: Runner | None = None) -> Iterator[Outcome]:
    """Yields each suite's outcome once its file ``OUT/SUITE.json`` is written.

    A suite that an earlier run completed from the same inputs is read, not measured again.

    Args:
        runner: does a job; by default in a process of its own.

    Raises:
        InvalidArgumentError: the model or the reference is nothing that can be measured.
    """
    for path in (plan.model, plan.reference):
        if path is not None:
            check_model(path)
    plan.out.mkdir(parents=True, exist_ok=True)
    for suite in tqdm(plan.suites, desc="validate", unit="suite"):
        yield _suite(plan, suite, runner or run_worker)


def _suite(plan: Plan, suite: str, runner: Runner) -> Outcome:
    path = plan.out / f"{suite}.json"
    inputs = store.inputs(plan, suite)
    kept = store.read(path, inputs)
    if kept is not None:
        return _outcome(plan, suite, kept["measured"], kept, reused=True)
    with tempfile.TemporaryDirectory(dir=plan.out, prefix=f".{suite}-") as scratch:
        measured: dict[str, Any] = {}
        for columns in groups(plan, suite):
            measured |= runner(job_of(plan, suite, columns, Path(scratch)))
    seconds = sum(found.get("seconds", 0.0) for found in measured.values())
    facts = {"seconds": seconds, "machine": machine(plan.device)}
    complete = all("result" in measured[name] for name in plan.columns(suite) if name != PEER)
    content = {"inputs": inputs, "complete": complete, "measured": measured} | facts
    store.write_json(path, content)
    return _outcome(plan, suite, measured, facts)


def groups(plan: Plan, suite: str) -> list[tuple[str, ...]]:
    """Columns by process: those of this library together, or apart where the suite asks for it."""
    columns = plan.columns(suite)
    ours = tuple(name for name in columns if name != PEER)
    alone = getattr(module_of(suite), "ALONE", False)
    together = [(name,) for name in ours] if alone else [ours]
    return together + [(PEER,)] * (PEER in columns)


def job_of(plan: Plan, suite: str, columns: tuple[str, ...], scratch: Path) -> Job:
    """The job that measures some columns of a suite."""
    return Job(
        suite=suite,
        columns=columns,
        original=str(model_folder(plan.model, plan.out)),
        reference=None if plan.reference is None else str(model_folder(plan.reference, plan.out)),
        device=plan.device,
        scratch=str(scratch),
        settings=asdict(plan.settings),
    )


def run_worker(job: Job) -> dict[str, Any]:
    """Does the job in a new process; a column that it says nothing of gets the reason."""
    environment = dict(os.environ, BITSANYWHERE_BACKEND="0")
    job_path, result = Path(job.scratch, "job.json"), Path(job.scratch, "result.json")
    job_path.write_text(json.dumps(asdict(job)), "utf-8")
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bitsanywhere.validate.worker", str(job_path), str(result)]
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment)
    try:
        status = process.wait()
    finally:
        process.kill()
        process.wait()
    if status == 0:
        return json.loads(result.read_text("utf-8"))
    return {name: {"error": f"the process ended with status {status}"} for name in job.columns}


def _outcome(
    plan: Plan, suite: str, measured: dict[str, Any], facts: dict[str, Any], reused: bool = False
) -> Outcome:
    module = module_of(suite)
    columns = {
        name: revive(module.Result, found["result"])
        for name, found in measured.items()
        if "result" in found
    }
    needed = [name for name in plan.columns(suite) if name != PEER]
    ready = all(name in columns for name in needed)
    return Outcome(
        suite=suite,
        columns=columns,
        errors={name: found["error"] for name, found in measured.items() if "error" in found},
        lines=module.judge(columns, plan.settings) if ready else (),
        seconds=facts["seconds"],
        machine=facts["machine"],
        reused=reused,
    )
