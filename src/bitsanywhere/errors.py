"""Errors that say what was given, why it cannot work and what mends it."""

from __future__ import annotations


class BitsAnywhereError(Exception):
    """Base of every error that bitsanywhere raises on purpose.

    Args:
        what: what went wrong, with the value that was given.
        why: the rule that it breaks, or what was tried.
        mend: what the user can do.
    """

    def __init__(self, what: str, why: str = "", mend: str = "") -> None:
        super().__init__(what, why, mend)
        self.what, self.why, self.mend = what, why, mend

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.mend) if part)


class InvalidArgumentError(BitsAnywhereError, ValueError):
    """An argument has a value or a shape that the operation does not allow."""


class BlocksizeError(InvalidArgumentError):
    """A block size that no kernel of ours serves."""


class DtypeError(BitsAnywhereError, TypeError):
    """A tensor has a dtype that the operation does not allow."""


class CheckpointError(BitsAnywhereError, ValueError):
    """Checkpoint metadata that is truncated, inconsistent or hostile."""


class UnsupportedDeviceError(BitsAnywhereError, RuntimeError):
    """No way exists to run on this device; says what was tried and why each way failed."""


class BackendUnavailable(BitsAnywhereError, RuntimeError):
    """A backend cannot work in this environment, so its ops fall back to the torch reference."""


class CacheError(BitsAnywhereError, RuntimeError):
    """The kernel cache folder is not safe to use."""


class PackError(BitsAnywhereError, ValueError):
    """A kernel pack that is malformed, corrupted or built for something else."""


class AuditError(BitsAnywhereError, ValueError):
    """A file given to the audit is unreadable or malformed."""


class MissingPackageError(BitsAnywhereError, ImportError):
    """A package that only this feature needs is not installed, or too old."""


class DiskSpaceError(BitsAnywhereError, OSError):
    """The result does not fit on the disk; ``needed`` and ``available`` are bytes."""

    def __init__(self, what: str, mend: str, needed: int, available: int) -> None:
        super().__init__(what, f"It needs {needed:,} bytes; {available:,} are available.", mend)
        self.needed, self.available = needed, available
