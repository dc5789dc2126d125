"""Outcomes as a page, as plots and as lines on a terminal."""

from bitsanywhere.validate.present.page import page
from bitsanywhere.validate.present.sections import Figure, Section, Table, section
from bitsanywhere.validate.present.terminal import summary

__all__ = ["Figure", "Section", "Table", "page", "section", "summary"]
