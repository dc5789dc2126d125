"""Mutated files for the audit: shared by the short test and the long recorded run.

    PYTHONPATH=src:. python tests/arch/fuzzing.py --runs 1000000 --seed 1
    PYTHONPATH=src:. python tests/arch/fuzzing.py --atheris -runs=1000000

A run fails on any exception but `AuditError`, on a file that takes over two seconds, and on a
process that grows past 300 MB.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from bitsanywhere.arch.devices import find_device
from bitsanywhere.arch.explain import explain
from bitsanywhere.arch.report import FileReport, audit
from bitsanywhere.errors import AuditError
from tests.arch.binaries import LZ4, PTX, SUFFIX_F, ZSTD, container, cubin, elf, entry, pe, wheel

FIXTURES = Path(__file__).parent / "fixtures"
DEVICES = [find_device(name) for name in ("orin-nano", "h100")]
SECONDS, MEGABYTES = 2.0, 300


def seeds() -> list[bytes]:
    """Sound files of every kind that is read."""
    code = container(
        entry(80, flags=LZ4, packed=9), entry(90, PTX), entry(100, flags=SUFFIX_F | ZSTD, packed=8)
    )
    library = elf({".nv_fatbin": code * 2, "__nv_relfatbin": code, ".rodata": cubin(87) + code})
    dll = pe({".nv_fatb": code, "__nv_rel": code, ".rdata": b"\0cublas64_12.dll\0"})
    return [
        library,
        dll,
        code,
        cubin(90),
        wheel({"a/b_cuda126.so": library, "a/c.dll": dll}),
        wheel({"a.so": b"\0" * 5000}),
        (FIXTURES / "rdc_sm80.so").read_bytes()[:6000],
        (FIXTURES / "two.fatbin").read_bytes(),
    ]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few of the things that go wrong, by accident or on purpose."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0:
                del made[at:]
            case 1 if at < len(made):
                made[at] = chance.randrange(256)
            case 2:
                value = chance.choice([0, 1, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, (1 << 64) - 1])
                width = chance.choice(["<B", "<H", "<I", "<Q"])
                limit = 1 << 8 * struct.calcsize(width)
                made[at : at + struct.calcsize(width)] = struct.pack(width, value % limit)
            case 3:
                start = chance.randrange(len(made) + 1)
                made[at:at] = made[start : start + chance.randrange(200)]
            case 4:
                del made[at : at + chance.randrange(64)]
            case _:
                made[at:at] = container(entry(chance.randrange(200), stated=chance.randrange(999)))
    return bytes(made)


def check(data: bytes, path: Path) -> FileReport | None:
    """Audit ``data`` and put the result into words; None if it is refused.

    Raises:
        Exception: whatever the audit lets through that it should not.
    """
    path.write_bytes(data)
    try:
        (file,) = audit([str(path)], DEVICES, "12.6").files
    except AuditError:
        return None
    for each in file.devices:
        explain(each.finding, file)
    return file


def scratch() -> Path:
    """A file to audit, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shared if shared.is_dir() else None)
    return Path(folder, "pkg-1-py3-none-any.bin")


def check_limits(data: bytes, path: Path) -> FileReport | None:
    """`check`, within the limits on time and memory."""
    start = time.perf_counter()
    result = check(data, path)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if seconds > SECONDS or peak > MEGABYTES:
        raise AssertionError(f"{seconds:.1f} s and {peak} MB for {data[:200]!r}")
    return result


def run(count: int, seed: int) -> None:
    """``count`` executions from a fixed seed; prints what came of them."""
    chance = random.Random(seed)
    files, path = seeds(), scratch()
    read = refused = 0
    start = time.perf_counter()
    for _ in range(count):
        data = mutate(chance.choice(files), chance)
        try:
            result = check_limits(data, path)
        except BaseException:
            path.with_name("crash.bin").write_bytes(data)
            print(f"kept in {path.with_name('crash.bin')}", file=sys.stderr)
            raise
        read, refused = read + (result is not None), refused + (result is None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{count} executions, seed {seed}: {read} read, {refused} refused, no crash, "
        f"{time.perf_counter() - start:.0f} s, peak {peak} MB"
    )


def run_atheris(words: list[str]) -> None:
    """Coverage-guided, with the options of libFuzzer."""
    import atheris

    path = scratch()
    corpus = path.with_name("corpus")
    corpus.mkdir()
    for number, data in enumerate(seeds()):
        (corpus / str(number)).write_bytes(data)
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *words, str(corpus)], lambda data: check_limits(data, path))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    args, rest = parser.parse_known_args()
    if args.atheris:
        run_atheris(rest)
    else:
        run(args.runs, args.seed)


if __name__ == "__main__":
    main()
