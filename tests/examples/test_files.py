"""Files and folders appear whole or not at all, whenever Ctrl-C comes."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from qlora import files

pytest.importorskip("psutil")


@pytest.fixture(autouse=True)
def fresh_signal_state(monkeypatch):
    monkeypatch.setattr(files._Signal, "noted", False)
    monkeypatch.setattr(files._Signal, "held", 0)
    handler = signal.getsignal(signal.SIGINT)
    files.catch_interrupts()
    yield
    signal.signal(signal.SIGINT, handler)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def swallowed_interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        interrupt()


def fill(final: Path, halfway: Callable[[], None]) -> None:
    with files.whole_folder(final) as new:
        (new / "half").write_text("2")
        halfway()
        (new / "whole").write_text("3")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_its_block_ends(tmp_path):
    with files.whole_folder(tmp_path / "a" / "model") as new:
        (new / "weights").write_text("1")
        assert not (tmp_path / "a" / "model").exists()
    assert (tmp_path / "a" / "model" / "weights").read_text() == "1"
    assert names(tmp_path / "a") == ["model"]


def test_an_older_folder_is_replaced_only_by_a_whole_one(tmp_path):
    final = tmp_path / "model"
    with files.whole_folder(final) as new:
        (new / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt):
        fill(final, interrupt)
    assert names(tmp_path) == ["model"]
    assert names(final) == ["old"]
    files._Signal.noted = False
    with files.whole_folder(final) as new:
        (new / "new").write_text("3")
    assert names(tmp_path) == ["model"]
    assert names(final) == ["new"]


def test_an_interrupt_that_got_lost_still_stops_the_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "model", swallowed_interrupt)
    assert names(tmp_path) == []


def test_an_interrupt_during_the_swap_waits_for_its_end(tmp_path, monkeypatch):
    final = tmp_path / "model"
    final.mkdir()
    (final / "old").write_text("1")
    replace = os.replace

    def replace_and_interrupt(source, target):
        interrupt()
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace_and_interrupt)
    with files.whole_folder(final) as new:
        (new / "new").write_text("2")
    assert names(final) == ["new"]
    assert names(tmp_path) == ["model"]
    assert files.interrupted()
    with pytest.raises(KeyboardInterrupt):
        files.checkpoint()


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    final = tmp_path / "report.html"
    files.write_text(final, "first\u00e9")
    assert final.read_bytes() == "first\u00e9".encode()
    monkeypatch.setattr(files, "checkpoint", lambda: interrupt())
    with pytest.raises(KeyboardInterrupt):
        files.write_text(final, "second")
    assert final.read_text(encoding="utf-8") == "first\u00e9"
    assert names(tmp_path) == ["report.html"]


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path):
    dead = 2**22 + 1
    (tmp_path / f".partial-{dead}-model").mkdir()
    (tmp_path / f".partial-{dead}-report.html").write_text("half")
    (tmp_path / f".partial-{os.getppid()}-model").mkdir()
    (tmp_path / "model").mkdir()
    assert sorted(files.sweep(tmp_path)) == [
        f".partial-{dead}-model",
        f".partial-{dead}-report.html",
    ]
    assert names(tmp_path) == [f".partial-{os.getppid()}-model", "model"]
