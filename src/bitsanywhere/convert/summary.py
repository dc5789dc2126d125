"""What a conversion did, in numbers and in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from bitsanywhere.convert.hf_model import SMALL


@dataclass
class Group:
    """Tensors of one fate: their names, and their bytes in source and result."""

    names: list[str] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0

    def add(self, name: str, before: int, after: int) -> None:
        """Counts one more tensor."""
        self.names.append(name)
        self.bytes_before += before
        self.bytes_after += after


@dataclass
class Summary:
    """The outcome of `quantize`.

    Attributes:
        destination: the folder that appeared.
        quantized: the tensors that were quantized.
        kept: those that were not, by reason.
        unused: names in the source that the model has no place for; they were left out.
        file_bytes: bytes of all files of weights.
        resumed: how many tensors an earlier run had finished.
    """

    destination: str
    quant_type: str
    quantized: Group = field(default_factory=Group)
    kept: dict[str, Group] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    file_bytes: int = 0
    resumed: int = 0

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors in the source that the model uses."""
        groups = (self.quantized, *self.kept.values())
        return sum(group.bytes_before for group in groups)

    def text(self) -> str:
        """Some lines for people."""
        lines = [
            f"{self.destination}: {megabytes(self.bytes_before)} -> {megabytes(self.file_bytes)}",
            f"  {self.quant_type}: {_line(self.quantized)}",
        ]
        for reason, group in sorted(self.kept.items()):
            lines.append(f"  kept: {_line(group)} ({reason})")
            if reason != SMALL:
                lines.append(f"    {patterns(group.names)}")
        if self.unused:
            count = len(self.unused)
            lines += [
                f"  left out: {count} tensors that the model does not use",
                f"    {patterns(self.unused)}",
            ]
        return "\n".join(lines)


def _line(group: Group) -> str:
    sizes = f"{megabytes(group.bytes_before)} -> {megabytes(group.bytes_after)}"
    return f"{len(group.names)} tensors, {sizes}"


def megabytes(count: int) -> str:
    """Bytes as a number of MB to read."""
    return f"{count / 1e6:,.1f} MB"


def patterns(names: Iterable[str]) -> str:
    """Names with a star for each number, each such pattern once, with its count."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(p if n == 1 else f"{p} ({n})" for p, n in counts.items())
