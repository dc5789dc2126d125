"""Converts and kills itself, again and again.

    python killed.py SRC DST N [N ...]

For each N a child process starts or goes on with the conversion and kills itself with SIGKILL at
its N-th write, in the middle of it; one more child is left in peace. The last line of the output is
the number of tensors that this one found finished. Children are forked before anything is computed,
so that no thread is there yet.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from bitsanywhere.convert import work
from bitsanywhere.convert.options import Options
from bitsanywhere.convert.quantize import quantize

OPTIONS = Options(double_quant=True)


def convert(source: Path, destination: Path, last: int | None) -> None:
    """One run, cut short at write ``last``."""
    work.COMMIT_BYTES = 10_000
    count = 0
    write = work.Work.write

    def mortal(self, name, position, content):
        nonlocal count
        count += 1
        if count == last:
            half = content.reshape(-1)[: content.numel() // 2]
            write(self, name, position, half)
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, name, position, content)

    work.Work.write = mortal
    print(quantize(source, destination, OPTIONS).resumed, flush=True)


def main(source: Path, destination: Path, deaths: list[int]) -> None:
    for death in [*deaths, None]:
        child = os.fork()
        if child == 0:
            convert(source, destination, death)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert (os.WTERMSIG(status) == signal.SIGKILL) == (death is not None), status
        assert destination.exists() == (death is None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])
