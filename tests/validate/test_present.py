"""The page and the plots of made-up outcomes."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree

import pytest

from bitsanywhere.validate.plan import BF16, OURS, TITLES
from bitsanywhere.validate.present import page, section, summary
from bitsanywhere.validate.present.reasons import reason
from bitsanywhere.validate.present.svg import Bar, bar_plot, histogram, line_plot, ticks
from bitsanywhere.validate.run import validate

FIGURES = {
    "roundtrip": ["roundtrip"],
    "logits": ["logits"],
    "training": ["training", "training_answers", "training_difference"],
    "carroll": ["carroll"],
    "speed": ["speed"],
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def outcomes(tiny_plan, made_up):
    return list(validate(tiny_plan, made_up))


def test_every_suite_has_its_plots_and_they_are_sound_xml(tiny_plan, outcomes):
    for outcome in outcomes:
        shown = section(outcome, tiny_plan.settings)
        assert [figure.name for figure in shown.figures] == FIGURES[outcome.suite]
        for figure in shown.figures:
            root = ElementTree.fromstring(figure.svg)
            drawn = [root.findall(f".//{SVG}{tag}") for tag in ("polyline", "path", "rect")]
            assert sum(map(len, drawn)) > 3
            assert "nan" not in figure.svg


def test_the_page_holds_plots_lines_and_nothing_foreign(tiny_plan, outcomes):
    html = page(tiny_plan, outcomes)
    assert html.count("<svg") == sum(map(len, FIGURES.values()))
    for outcome in outcomes:
        for line in outcome.lines:
            assert line.name.replace("'", "&#x27;") in html
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "<script" not in html


def test_names_are_escaped(tiny_plan, outcomes, tmp_path):
    plan = dataclasses.replace(tiny_plan, model=tmp_path / "<b>model")
    html = page(plan, outcomes)
    assert "<b>" not in html
    assert "&lt;b&gt;model" in html


def test_a_suite_without_our_column_shows_the_reason(tiny_plan):
    def broken(job):
        return {column: {"error": "out of <memory>"} for column in job.columns}

    outcomes = list(validate(dataclasses.replace(tiny_plan, suites=("logits",)), broken))
    html = page(tiny_plan, outcomes)
    assert "was not measured: out of &lt;memory&gt;" in html
    assert "not measured: bf16: out of <memory>" in summary(outcomes[0])


def test_summary_tells_misses(outcomes):
    text = summary(dataclasses.replace(outcomes[2], reused=True))
    assert "measured before" in text
    assert "  ok " in text
    missed = dataclasses.replace(outcomes[2].lines[0], measured=1.0, peer=0.5)
    text = summary(dataclasses.replace(outcomes[2], lines=(missed,)))
    assert "MISS" in text
    assert "bitsandbytes 0.5" in text


def test_ticks_are_round():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.092, 0.102) == pytest.approx([0.092, 0.094, 0.096, 0.098, 0.1, 0.102])
    assert ticks(3, 3) == [3]


def test_plots_place_points_where_they_belong():
    svg = line_plot({TITLES[BF16]: [1.0, 2.0, 3.0]}, "step", "loss")
    (line,) = ElementTree.fromstring(svg).findall(f"{SVG}polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    xs, ys = zip(*points)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] > ys[1] > ys[2]

    svg = bar_plot({"x": [Bar(TITLES[BF16], 1.0), Bar(TITLES[OURS], 2.0, 1.5, 2.5)]}, "unit")
    bars = [r for r in ElementTree.fromstring(svg).findall(f"{SVG}rect") if r.get("height") == "16"]
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)


def test_histograms_and_lines_of_one_value_can_be_drawn():
    for svg in (
        histogram({TITLES[OURS]: [0.1, 0.1]}, "x", "y", mark=0.1),
        line_plot({TITLES[OURS]: [2.0]}, "x", "y"),
    ):
        assert "nan" not in svg
        ElementTree.fromstring(svg)


def test_reasons_are_given_only_where_the_columns_tell(tiny_plan, outcomes):
    texts = {outcome.suite: reason(outcome) for outcome in outcomes}
    assert set(texts.values()) == {""}
    price, kernels = outcomes[1].lines
    missed = dataclasses.replace(price, measured=0.2, peer=0.21)
    told = reason(dataclasses.replace(outcomes[1], lines=(missed, kernels)))
    assert "not the kernels'" in told
    assert "bitsandbytes measures the same: 0.21" in told
    other = dataclasses.replace(missed, peer=0.4)
    assert "bitsandbytes" not in reason(dataclasses.replace(outcomes[1], lines=(other, kernels)))
    worse = dataclasses.replace(kernels, measured=0.5)
    assert reason(dataclasses.replace(outcomes[1], lines=(missed, worse))) == ""


def test_guessing_is_said_only_of_a_model_that_guesses(outcomes):
    carroll = outcomes[3]
    line = dataclasses.replace(carroll.lines[0], measured=9)
    right = (-1.0, -2.0, -2.0, -2.0)
    wrong = (-3.0, -2.0, -2.0, -2.0)
    guessed = "than guessing (29.3% of 58 problems, 25% by chance)", "apart by 2.4 problems of 16"
    for right_of_58, words in ((17, guessed), (52, ())):
        rows = tuple(right if i < right_of_58 else wrong for i in range(58))
        columns = {BF16: dataclasses.replace(carroll.columns[BF16], likelihoods=rows)}
        told = reason(dataclasses.replace(carroll, lines=(line,), columns=columns))
        assert all(each in told for each in words) if words else told == ""


def test_a_missed_loss_is_told_with_what_was_there_at_the_start(outcomes):
    training = outcomes[2]
    base = dataclasses.replace(training.columns[BF16], losses=(4.0, 2.0, 2.0, 1.0))
    ours = dataclasses.replace(base, losses=(4.4, 2.1, 2.0, 1.01))
    lines = tuple(dataclasses.replace(line, measured=0.05, peer=0.051) for line in training.lines)
    missed = dataclasses.replace(training, columns={BF16: base, OURS: ours}, lines=lines)
    told = reason(missed)
    assert "start +10.00% from bf16's loss" in told
    assert "over the last 1 steps +1.00% is left" in told
    assert "bitsandbytes measures the same: 0.051" in told
