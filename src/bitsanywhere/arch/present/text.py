"""Text that comes from files of strangers, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with every character that could steer a terminal replaced by an escape."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)
