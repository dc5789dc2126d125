"""The one error the demo raises on purpose: something the user can put right."""

from __future__ import annotations


class DemoError(Exception):
    """A wrong setting or a missing piece; `mend` is what to do about it."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  {self.mend}"
