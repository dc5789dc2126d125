"""What a worker process is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsanywhere.validate.plan import PEER, Settings
from bitsanywhere.validate.subject import Subject


@dataclass(frozen=True)
class Job:
    """What a worker is to do; all its fields are plain JSON."""

    suite: str
    columns: tuple[str, ...]
    original: str
    reference: str | None
    device: str
    scratch: str
    settings: dict[str, Any]

    @property
    def stock(self) -> bool:
        """Whether the installed bitsandbytes does it, with its own kernels."""
        return self.columns == (PEER,)

    def subject(self, column: str) -> Subject:
        """The subject of one of the columns."""
        return Subject(
            column=column,
            original=Path(self.original),
            reference=None if self.reference is None else Path(self.reference),
            device=self.device,
            settings=Settings(**self.settings),
            scratch=Path(self.scratch),
        )
