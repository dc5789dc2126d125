"""A file of known size that is read once from front to back, remembering its last megabytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

from bitsanywhere.errors import AuditError

PIECE = 1 << 20
REMEMBERED = 4
MAX_REWINDS = 4


class Tape:
    """Sequential pieces of a file, and small reads anywhere in it.

    The header table of an ELF file comes last and its names just before it, so after one pass
    both are still remembered, and a compressed wheel member is inflated only once.

    Args:
        open_stream: opens the file anew at its start.
        size: how many bytes it has to have.
    """

    def __init__(self, open_stream: Callable[[], BinaryIO], size: int) -> None:
        self._open_stream = open_stream
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED)
        self._rewinds = 0
        self.size = size
        self.head = b""

    def pieces(self) -> Iterator[bytes]:
        """The whole file, in order.

        Raises:
            AuditError: if it ends before its size or goes on after it.
        """
        offset = 0
        with self._open_stream() as stream:
            while piece := stream.read(PIECE):
                if offset == 0:
                    self.head = piece
                self._recent.append((offset, piece))
                offset += len(piece)
                if offset > self.size:
                    break
                yield piece
        if offset != self.size:
            raise AuditError(f"the file has {offset} bytes instead of the stated {self.size}")

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``.

        Raises:
            AuditError: if the file has no such bytes, or is built to make us rewind for ever.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise AuditError(
                f"bytes {offset} to {offset + size} are referred to, of a file of {self.size}",
                "The file is truncated, or a size in it is wrong.",
            )
        kept = self._remembered(offset, size)
        if kept is not None:
            return kept
        self._rewinds += 1
        if self._rewinds > MAX_REWINDS:
            raise AuditError("the file's tables are scattered over too many places")
        with self._open_stream() as stream:
            stream.seek(offset)
            return stream.read(size)

    def _remembered(self, offset: int, size: int) -> bytes | None:
        """The bytes, if they lie in the first piece or in the last ones."""
        if offset + size <= len(self.head):
            return self.head[offset : offset + size]
        if not self._recent or offset < self._recent[0][0]:
            return None
        start = self._recent[0][0]
        return b"".join(piece for _, piece in self._recent)[offset - start : offset - start + size]
