"""Stages of the demo: what each one took, and the memory the process held meanwhile."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from .files import checkpoint


@dataclass
class Stage:
    """One stage: start and length in seconds, and the processor time of all its threads."""

    name: str
    start: float
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass
class Log:
    """Times the stages and samples memory between `start()` and `stop()`.

    A sample is (seconds since the start, bytes): of resident memory, or on a GPU of the memory
    that torch has allocated there.
    """

    device: str
    stages: list[Stage] = field(default_factory=list)
    samples: list[tuple[float, int]] = field(default_factory=list)
    interval: float = 0.2

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        self._begun = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.samples.append((time.perf_counter() - self._begun, held_bytes(self.device)))
            self._stop.wait(self.interval)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run the block as a stage; say its name before and its time after."""
        checkpoint()
        print(f"{name} ...", flush=True)
        stage = Stage(name, time.perf_counter() - self._begun)
        cpu = time.process_time()
        self.stages.append(stage)
        yield stage
        stage.seconds = time.perf_counter() - self._begun - stage.start
        stage.cpu_seconds = time.process_time() - cpu
        checkpoint()
        print(f"  {stage.seconds:.1f} s", flush=True)

    def as_dict(self) -> dict[str, Any]:
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "memory": [[round(t, 2), held] for t, held in self.samples],
        }


def held_bytes(device: str) -> int:
    """What the process holds now: resident memory, or what torch allocated on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def release() -> None:
    """Hand back what was dropped, so that the memory plot shows what is in use."""
    gc.collect()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return
