"""Plans, processes, and what survives: kept suites, interruptions, failures of one column."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from bitsanywhere.errors import InvalidArgumentError
from bitsanywhere.validate import run, store
from bitsanywhere.validate.plan import BF16, DEQUANTIZED, OURS, PEER, REFERENCE, SUITES, Line
from bitsanywhere.validate.run import groups, validate


@pytest.fixture
def counted(made_up):
    """A runner that measures nothing and lists the suites it was asked for."""
    calls = []

    def runner(job):
        calls.append(job.suite)
        return made_up(job)

    runner.calls = calls
    return runner


def test_suites_are_kept_and_not_measured_again(tiny_plan, counted):
    first = list(validate(tiny_plan, counted))
    assert [outcome.suite for outcome in first] == list(SUITES)
    assert all(outcome.passed and not outcome.reused for outcome in first)
    before = len(counted.calls)
    second = list(validate(tiny_plan, counted))
    assert len(counted.calls) == before
    assert all(outcome.reused for outcome in second)
    assert [o.lines for o in second] == [o.lines for o in first]
    assert [o.columns for o in second] == [o.columns for o in first]


@pytest.mark.parametrize("change", ["settings", "model", "peer"])
def test_changed_inputs_are_measured_again(tiny_plan, counted, change, tmp_path):
    plan = dataclasses.replace(tiny_plan, suites=("logits",))
    list(validate(plan, counted))
    if change == "settings":
        plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, seed=1))
    elif change == "peer":
        plan = dataclasses.replace(plan, peer=True)
    else:
        copy = tmp_path / "copy"
        copy.mkdir()
        for path in plan.model.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        os.utime(copy / "model.safetensors", ns=(1, 1))
        plan = dataclasses.replace(plan, model=copy)
    assert not next(iter(validate(plan, counted))).reused


def test_an_interruption_keeps_what_is_complete(tiny_plan, counted, made_up):
    def interrupted(job):
        if job.suite == "training":
            raise KeyboardInterrupt
        return counted(job)

    done = []
    with pytest.raises(KeyboardInterrupt):
        done.extend(outcome.suite for outcome in validate(tiny_plan, interrupted))
    assert done == ["roundtrip", "logits"]
    left = sorted(path.name for path in tiny_plan.out.iterdir())
    assert left == ["logits.json", "roundtrip.json"]
    resumed = list(validate(tiny_plan, counted))
    assert [outcome.reused for outcome in resumed] == [True, True, False, False, False]


def test_a_truncated_file_is_measured_again(tiny_plan, counted):
    plan = dataclasses.replace(tiny_plan, suites=("logits",))
    list(validate(plan, counted))
    path = plan.out / "logits.json"
    path.write_text(path.read_text()[:-20])
    assert not next(iter(validate(plan, counted))).reused


def test_failure_of_the_peer_is_told_and_ours_of_account(tiny_plan, made_up):
    plan = dataclasses.replace(tiny_plan, suites=("logits",), peer=True)

    def peerless(job):
        if job.columns == (PEER,):
            return {PEER: {"error": "named symbol not found"}}
        return made_up(job)

    (outcome,) = validate(plan, peerless)
    assert outcome.passed
    assert outcome.errors == {PEER: "named symbol not found"}
    assert next(iter(validate(plan, peerless))).reused

    def broken(job):
        return made_up(job) | {
            column: {"error": "boom"} for column in job.columns if column == OURS
        }

    (outcome,) = validate(dataclasses.replace(plan, out=plan.out / "b"), broken)
    assert not outcome.passed
    assert outcome.lines == ()
    assert not next(iter(validate(dataclasses.replace(plan, out=plan.out / "b"), broken))).reused


def test_columns_and_processes(tiny_plan):
    assert tiny_plan.columns("carroll") == (BF16, OURS)
    plan = dataclasses.replace(tiny_plan, reference=tiny_plan.model, peer=True)
    assert plan.columns("carroll") == (BF16, OURS, REFERENCE, PEER)
    assert groups(plan, "logits") == [(BF16, OURS, DEQUANTIZED, REFERENCE), (PEER,)]
    assert groups(plan, "speed") == [(BF16,), (OURS,), (PEER,)]


def test_what_is_no_model_is_refused(tiny_plan, tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.gguf"):
        with pytest.raises(InvalidArgumentError, match="is not a model"):
            list(validate(dataclasses.replace(tiny_plan, model=path)))
        with pytest.raises(InvalidArgumentError, match="is not a model"):
            list(validate(dataclasses.replace(tiny_plan, reference=path)))


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    store.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(path, {"a": float("nan")})
    monkeypatch.setattr(os, "replace", _no_replace)
    with pytest.raises(OSError, match="full"):
        store.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def _no_replace(*_paths):
    raise OSError("disk full")


def test_nan_passes_no_line():
    assert not Line("x", float("nan"), 1.0, "").passed
    assert Line("x", 1.0, 1.0, "").passed


def test_a_worker_that_dies_is_told(tiny_plan, monkeypatch, tmp_path):
    import sys

    monkeypatch.setattr(sys, "executable", "/bin/false")
    job = run.job_of(tiny_plan, "roundtrip", (OURS,), tmp_path)
    assert run.run_worker(job) == {OURS: {"error": "the process ended with status 1"}}


@pytest.mark.slow
def test_processes_measure_what_suites_ask_for(tiny_plan):
    """The whole chain on the tiny model, stock bitsandbytes included where it is installed."""
    plan = dataclasses.replace(tiny_plan, reference=tiny_plan.model, peer=run.peer_installed())
    outcomes = {outcome.suite: outcome for outcome in validate(plan)}
    for suite, outcome in outcomes.items():
        # on CPUs stock bitsandbytes fails, or dequantizes wrongly, where rows are no whole blocks
        assert set(outcome.errors) <= {PEER}, outcome.errors
        assert (*outcome.columns, *outcome.errors) == plan.columns(suite)
    assert outcomes["roundtrip"].passed
