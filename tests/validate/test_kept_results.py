"""The kept results of `validate`: their lines follow from their columns, and are what is shown."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

pytest.importorskip("transformers")

from benchmarks import tables
from benchmarks.measure import RESULTS
from bitsanywhere.validate.plan import SUITES, Settings, module_of, revive
from docs import hooks

KEPT = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("validate_*.json")}
# The first of them were kept without columns.
WHOLE = [name for name, content in KEPT.items() if "settings" in content]


@pytest.mark.parametrize("name", WHOLE)
def test_lines_follow_from_columns(name):
    settings = Settings(**KEPT[name]["settings"])
    assert settings.steps >= 100
    for suite in KEPT[name]["suites"]:
        module = module_of(suite["suite"])
        columns = {k: revive(module.Result, v) for k, v in suite["columns"].items()}
        lines = [asdict(x) | {"passed": x.passed} for x in module.judge(columns, settings)]
        assert lines == suite["lines"]


@pytest.mark.parametrize("name", WHOLE)
def test_every_suite_was_measured_beside_bitsandbytes(name):
    suites = {suite["suite"]: suite for suite in KEPT[name]["suites"]}
    assert tuple(suites) == SUITES
    for suite in suites.values():
        assert suite["errors"] == {}
        assert "bitsandbytes" in suite["columns"]


def test_the_readme_shows_them():
    text = tables.README.read_text()
    assert tables.replace(text, "proof", tables.proof()) == text


def test_the_documentation_shows_them():
    page = (tables.README.parent / "docs" / "validate.md").read_text()
    assert hooks.OVERVIEW_MARK in page
    shown = hooks.on_page_markdown(page)
    for content in KEPT.values():
        for suite in content["suites"]:
            for line in suite["lines"]:
                assert f"| {suite['suite']}: {line['name']} |" in shown
                assert line["passed"] or f"**{line['measured']:.3g} (" in shown
