"""The folder in which a result grows until it is whole, and the journal that lets it go on.

Beside DST lies ``.DST.quantizing`` with ``plan.json`` (what is being made of what), ``journal``
(a line for each finished tensor) and ``result`` (the files). A tensor's line is written only after
its bytes have reached the disk, so whatever kills the process, a line never promises too much: an
unfinished tensor is done again, at the same place. ``result`` is renamed to DST at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from bitsanywhere.convert.layout import Layout
from bitsanywhere.convert.safetensors_file import encode_header
from bitsanywhere.convert.sources import INDEX_FILE
from bitsanywhere.errors import CheckpointError, DiskSpaceError

try:
    import fcntl
except ImportError:
    fcntl = None

# Finished tensors are made durable together, so that small ones do not wait for the disk each.
COMMIT_BYTES = 16 << 20
# Beyond the files of weights: tokenizer, journal, the file system's own.
SPARE_BYTES = 64 << 20


class Work:
    """The work folder of one conversion; a context manager that lets go of it, finished or not.

    Args:
        destination: the folder that shall appear.
        layout: what lies where.
        plan: JSON that says what is made of what; a folder of another plan is refused.

    Attributes:
        states: the JSON of each finished tensor's 4-bit state, None for tensors without one.

    Raises:
        CheckpointError: if the destination exists, or the folder is of another plan or in use.
        DiskSpaceError: if the result does not fit.
    """

    def __init__(self, destination: Path, layout: Layout, plan: Mapping[str, Any]) -> None:
        self.destination, self.layout = destination, layout
        self.folder = work_folder(destination)
        self.result = self.folder / "result"
        self.states: dict[str, bytes | None] = {}
        self._pending: dict[str, bytes | None] = {}
        self._pending_bytes = 0
        refuse_existing(destination)
        self._require_space()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = (self.folder / "journal").open("ab+")
        try:
            self._lock()
            text = json.dumps(plan, sort_keys=True, indent=1)
            if not self._resumes(text):
                self._start(text)
            self._read_journal()
            self._files = [(self.result / shard.name).open("r+b") for shard in layout.shards]
        except BaseException:
            self._journal.close()
            raise

    def _require_space(self) -> None:
        needed = sum(shard.most_bytes() for shard in self.layout.shards) + SPARE_BYTES
        for shard in self.layout.shards:
            path = self.result / shard.name
            # A file that is being filled has holes: only its blocks are taken.
            if path.is_file() and hasattr(path.stat(), "st_blocks"):
                needed -= path.stat().st_blocks * 512
        place = next(p for p in self.folder.absolute().parents if p.exists())
        available = shutil.disk_usage(place).free
        if needed > available:
            raise DiskSpaceError(
                f"{self.destination} does not fit on its disk",
                "Free some space, or choose a folder on another disk.",
                needed,
                available,
            )

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} is in use", "Another process is making the same result."
            ) from error

    def _resumes(self, plan: str) -> bool:
        """Whether the folder is a started conversion of this very plan."""
        try:
            found = (self.folder / "plan.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        if found != plan:
            raise CheckpointError(
                f"{self.folder} holds an unfinished conversion of another source, with other "
                "options or by another version",
                "It cannot go on with these.",
                f"Repeat the command that began it, or delete {self.folder}.",
            )
        for shard in self.layout.shards:
            path = self.result / shard.name
            if not path.is_file() or path.stat().st_size < shard.known_bytes:
                return False
        return True

    def _start(self, plan: str) -> None:
        """An empty result; the plan, which says that it is sound, comes last."""
        (self.folder / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(self.result, ignore_errors=True)
        self.result.mkdir()
        self._journal.truncate(0)
        for shard in self.layout.shards:
            with (self.result / shard.name).open("wb") as file:
                file.truncate(shard.known_bytes)
                _sync(file)
        sync_folder(self.result)
        new = self.folder / "plan.json.new"
        _write_durably(new, plan.encode())
        os.replace(new, self.folder / "plan.json")
        sync_folder(self.folder)

    def _read_journal(self) -> None:
        """Finished tensors; the last line may be torn, and goes."""
        self._journal.seek(0)
        sound = 0
        for line in self._journal:
            try:
                name, state = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            self.states[name] = None if state is None else state.encode()
            sound += len(line)
        self._journal.truncate(sound)

    def write(self, name: str, position: int, content: torch.Tensor) -> None:
        """Puts ``content`` at a byte within the tensor ``name`` of the result."""
        spot = self.layout.spots[name]
        data = content.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        end = position + data.nbytes
        assert end <= spot.entry.stop - spot.entry.start, name
        file = self._files[spot.shard]
        file.seek(spot.position + position)
        file.write(data.data)
        self._pending_bytes += data.nbytes

    def finish(self, name: str, state: bytes | None) -> None:
        """Notes that all of a source's tensor is written."""
        self._pending[name] = state
        if self._pending_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Makes what is finished durable: first the data, then the journal's lines."""
        if not self._pending:
            return
        for file in self._files:
            _sync(file)
        for name, state in self._pending.items():
            text = None if state is None else state.decode()
            self._journal.write(json.dumps([name, text]).encode() + b"\n")
        _sync(self._journal)
        self.states |= self._pending
        self._pending, self._pending_bytes = {}, 0

    def complete(self, states: Mapping[str, bytes]) -> int:
        """Writes headers, JSONs and, for several files, the index.

        Args:
            states: the JSON of each 4-bit state by the name of its tensor in the result.

        Returns:
            Bytes of all files of weights.
        """
        self.commit()
        total, parameters = 0, {}
        for shard, file in zip(self.layout.shards, self._files):
            entries = shard.complete(states)
            file.seek(0)
            file.write(encode_header(entries, shard.head_bytes))
            file.seek(shard.known_bytes)
            for name in shard.states:
                file.write(states[name])
            file.truncate()
            _sync(file)
            total += file.tell()
            parameters |= {entry.name: shard.name for entry in entries}
        if len(self.layout.shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": parameters}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.result / INDEX_FILE).write_text(text, encoding="utf-8")
        return total

    def publish(self) -> None:
        """Makes everything durable, gives the result its name and removes the rest."""
        for path in self.result.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(self.result)
        refuse_existing(self.destination)
        for file in self._files:
            file.close()
        os.rename(self.result, self.destination)
        sync_folder(self.destination.absolute().parent)
        shutil.rmtree(self.folder)

    def __enter__(self) -> Work:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None and self.folder.exists():
                self.commit()
        finally:
            for file in (*self._files, self._journal):
                file.close()


def work_folder(destination: Path) -> Path:
    """Where a result grows: hidden, beside the destination, so that a rename suffices."""
    return destination.with_name(f".{destination.name}.quantizing")


def refuse_existing(destination: Path) -> None:
    """Raises CheckpointError if there is something at ``destination``."""
    if os.path.lexists(destination):
        raise CheckpointError(
            f"{destination} exists", "Nothing is overwritten.", "Choose another folder."
        )


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        _sync(file)
