"""Measures some columns of one suite, in a process of its own.

    python -m bitsanywhere.validate.worker JOB.json RESULT.json

One process means one library under the name bitsandbytes, memory that starts empty, and an end
whatever happens. The result maps a column to what was measured, or to why it could not be.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitsanywhere.validate.job import Job
from bitsanywhere.validate.plan import module_of, revive


def work(job: Job) -> dict[str, Any]:
    """``{column: {"result": ..., "seconds": ...}}``, or "error", where measuring raised."""
    suite = module_of(job.suite)
    found: dict[str, Any] = {}
    for column in job.columns:
        begun = time.perf_counter()
        try:
            found[column] = {"result": _finite(asdict(suite.measure(job.subject(column))))}
        except Exception as error:
            traceback.print_exc()
            found[column] = {"error": f"{type(error).__name__}: {error}"}
        found[column]["seconds"] = time.perf_counter() - begun
    return found


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """The result; raises ValueError if a number in it is no number, as of a diverged run."""
    json.dumps(result, allow_nan=False)
    return result


def quiet() -> None:
    """Keeps the libraries' own bars and notices off the terminal, and off the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=UserWarning, module="peft")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def main(argv: Sequence[str]) -> int:
    """Reads the job, works, writes the result. Ctrl-C ends the process without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    path, result = map(Path, argv)
    job = revive(Job, json.loads(path.read_text("utf-8")))
    if not job.stock:
        import bitsanywhere.compat

        bitsanywhere.compat.install(force=True)
    quiet()
    result.write_text(json.dumps(work(job)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
