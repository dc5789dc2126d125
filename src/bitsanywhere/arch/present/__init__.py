"""The audit in the formats that people and programs read."""

from __future__ import annotations

from collections.abc import Callable

from bitsanywhere.arch.present.as_html import as_html
from bitsanywhere.arch.present.as_json import as_json
from bitsanywhere.arch.present.as_markdown import as_markdown
from bitsanywhere.arch.present.as_sarif import as_sarif
from bitsanywhere.arch.present.as_table import as_table
from bitsanywhere.arch.report import Report

FORMATS: dict[str, Callable[[Report], str]] = {
    "table": as_table,
    "json": as_json,
    "markdown": as_markdown,
    "html": as_html,
    "sarif": as_sarif,
}

__all__ = ["FORMATS", "as_html", "as_json", "as_markdown", "as_sarif", "as_table"]
