"""Whole files or none: everything is written under a temporary name and renamed at the end.

Ctrl-C may come at any moment, also inside foreign code that swallows the exception it raises
there. So the signal is noted as well as raised, `checkpoint()` raises it again where the demo
is at a good place to stop, and the few steps that clean up or rename run with it held back.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import DemoError

_PARTIAL = ".partial-"


class _Signal:
    """What is known about Ctrl-C in this process."""

    noted = False
    held = 0


def catch_interrupts() -> None:
    """Note Ctrl-C and raise KeyboardInterrupt for it; call once, from the main thread."""
    signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(_signum: int, _frame: FrameType | None) -> None:
    _Signal.noted = True
    if not _Signal.held:
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether Ctrl-C was pressed, even if some library swallowed it."""
    return _Signal.noted


def checkpoint() -> None:
    """Stop here if Ctrl-C was pressed earlier and its exception got lost."""
    if _Signal.noted and not _Signal.held:
        raise KeyboardInterrupt


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let the enclosed lines finish; a Ctrl-C pressed meanwhile is raised by `checkpoint()`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signal.held += 1
    try:
        yield
    finally:
        _Signal.held -= 1


def _temporary(final: Path) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    return final.parent / f"{_PARTIAL}{os.getpid()}-{final.name}"


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `final` when the block ends well.

    An existing `final` is replaced; it is gone only once its successor is complete. When the
    block raises, Ctrl-C included, the temporary folder is removed and `final` stays as it was.
    """
    new = _temporary(final)
    try:
        new.mkdir()
        yield new
        checkpoint()
        with hold_interrupts():
            old = _temporary(final.with_name(final.name + "-old"))
            if final.exists():
                os.replace(final, old)
            os.replace(new, final)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        with hold_interrupts():
            shutil.rmtree(new, ignore_errors=True)


def write_text(final: Path, text: str) -> None:
    """Write `text` to `final` (UTF-8), whole or not at all."""
    new = _temporary(final)
    try:
        new.write_text(text, encoding="utf-8")
        checkpoint()
        os.replace(new, final)
    finally:
        with hold_interrupts():
            new.unlink(missing_ok=True)


def sweep(folder: Path) -> list[str]:
    """Remove what killed runs (no chance to clean up) left in `folder`; return the names."""
    import psutil

    removed = []
    for path in folder.glob(f"{_PARTIAL}*"):
        pid = path.name[len(_PARTIAL) :].split("-")[0]
        if pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid)):
            continue
        with hold_interrupts():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def check_model_folder(folder: Path) -> None:
    """Raise DemoError unless `folder` looks like a causal language model in safetensors."""
    mend = "give a folder with config.json, tokenizer.json and *.safetensors with --model DIR"
    if not folder.is_dir():
        raise DemoError(f"there is no model folder {folder}", mend)
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not list(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise DemoError(f"{folder} is not a model folder: it has no {', '.join(missing)}", mend)
