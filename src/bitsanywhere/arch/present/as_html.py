"""The audit as one self-contained page: a colour matrix of devices and libraries."""

from __future__ import annotations

import json
from importlib import resources

from bitsanywhere.arch.present.as_json import to_dict
from bitsanywhere.arch.report import Report

PLACE = "__AUDIT_JSON__"


def as_html(report: Report) -> str:
    """The page, with the JSON report in it; it loads nothing from anywhere."""
    page = resources.files(__package__ or "").joinpath("page.html").read_text("utf-8")
    before, after = page.split(PLACE)
    return before + embeddable(json.dumps(to_dict(report))) + after


def embeddable(text: str) -> str:
    """JSON that can stand in a script element: nothing in it can close the element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
