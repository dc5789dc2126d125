"""The report is well-formed, self-contained, escaped, and shows what the results say."""

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from qlora import report

VOID = {"meta", "br"}


def results() -> dict:
    def model(title: str, size: int) -> dict:
        return {
            "title": title,
            "bytes": size,
            "linear_bytes": size // 2,
            "load_seconds": 1.25,
            "perplexity": 23.456,
            "answer": "Paris <b>& more</b>",
        }

    def scores(written: float, answers: list[str]) -> dict:
        return {
            "chosen": 0.5,
            "written": written,
            "log_likelihood": -0.25,
            "items": 4,
            "answers": answers,
        }

    stages = [
        {"name": f"stage <{i}>", "start": i * 2.0, "seconds": 2.0, "cpu_seconds": 3.5}
        for i in range(3)
    ]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "library": "bitsanywhere 0",
        "versions": {"python": "3.12", "torch": "2.9"},
        "machine": {"device": "cpu", "name": "Chip & Co", "system": "Linux"},
        "model": "tiny",
        "text": "harbour.txt",
        "question": "Where & why?",
        "models": {"bf16": model("bf16", 269_030_000), "nf4": model("4-bit", 111_700_000)},
        "training": {
            "steps": 3,
            "batch": 8,
            "items": 24,
            "seconds": 6.0,
            "adapter_parameters": 4_884_480,
            "losses": [2.0, 1.0, 0.5],
        },
        "scores": {
            "before": scores(0.0, ["I <think>"]),
            "after": scores(0.75, ["All a are b."]),
            "merged_bf16": scores(0.5, ["No a are b."]),
            "merged_nf4": scores(0.25, ["No a are b."]),
        },
        "items": [{"question": "All a are c.\nAll c are b.", "answer": "All a are b."}],
        "checks": [
            {"name": "same", "measured": 0.01, "allowed": 0.05, "reason": "r < s", "passed": True},
            {"name": "other", "measured": 0.5, "allowed": 0.05, "reason": "r", "passed": False},
        ],
        "written": ["out/adapter"],
        "stages": stages,
        "memory": [[0.0, 10**9], [1.0, 2 * 10**9], [5.0, 10**9]],
    }


class Balance(HTMLParser):
    """Checks that every tag is closed in order, and collects ids and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.note(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.links.append(value)


@pytest.fixture(scope="module")
def html() -> str:
    return report.render(results())


def test_html_is_well_formed_and_self_contained(html):
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    assert all(link.startswith("#") and link[1:] in parser.ids for link in parser.links)
    assert not re.search(r"<script|<link|@import|url\((?!#)", html)
    for reference in re.findall(r"url\(#([^)]+)\)", html):
        assert reference in parser.ids


def test_four_plots_as_inline_svg(html):
    plots = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(plots) == 4
    for plot in plots:
        assert ElementTree.fromstring(plot).tag.endswith("svg")


def test_text_from_outside_is_escaped(html):
    assert "Paris &lt;b&gt;&amp; more&lt;/b&gt;" in html
    assert "I &lt;think&gt;" in html
    assert "stage &lt;1&gt;" in html
    assert "Chip &amp; Co" in html
    assert "<b>" not in html


def test_numbers_are_shown(html):
    for shown in ("269.0 MB", "111.7 MB", "23.46", "75%", "0.0100", "out/adapter", "torch 2.9"):
        assert shown in html
    assert html.count('class="yes"') == html.count('class="no"') == 1


def test_summary_names_failed_checks():
    text = report.summary(results())
    assert "NO  other: 0.5000 (allowed 0.0500)" in text
    assert "ok  same" in text
    assert "269.0 MB" in text


def test_the_same_results_give_the_same_report(html):
    assert report.render(json.loads(json.dumps(results()))) == html
