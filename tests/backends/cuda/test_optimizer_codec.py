"""optimizer_codec.cuh, compiled by the host's g++: codes of 8-bit states as formats/ has them."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bitsanywhere import formats
from bitsanywhere.backends import cuda
from bitsanywhere.formats import GRID_POINTS, GRID_SCALE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
HEADERS = Path(cuda.__file__).parent

WRAPPERS = """
#include "optimizer_codec.cuh"

extern "C" {
long buckets() { return BUCKETS; }
void make_starts(const float* code, float* starts) {
  for (u32 c = 0; c < 256; c++) starts[c] = start8(code, c);
}
// Runs of a few buckets, as threads make them.
int make_entries(const float* starts, u32 zero, u32* entries) {
  bool exact = true;
  for (u32 negative = 0; negative < 2; negative++)
    for (u32 first = 0; first < BUCKETS; first += 9) {
      Entries made(starts, zero, negative, first);
      for (u32 bucket = first; bucket < first + 9 && bucket < BUCKETS; bucket++)
        entries[2 * bucket + negative] = made.next(bucket);
      exact = exact && made.exact;
    }
  return exact;
}
static u32 by_table(const u32* entries, float s) {
  u32 bits = lifted(absolute(s)), bucket = (bits >> 16) - FIRST_BUCKET;
  u32 entry = entries[2 * bucket + (bits_of(s) >> 31)];
  return (bits << 16 > entry ? entry >> 8 : entry) & 255u;
}
void codes(const u32* entries, const float* s, u8* out, long n) {
  for (long i = 0; i < n; i++) out[i] = by_table(entries, s[i]);
}
void codes_of_block(const u32* entries, const float* x, float inverse, u8* out, long n) {
  for (long i = 0; i < n; i++) out[i] = by_table(entries, relative(x[i], inverse));
}
void codes_by_bisection(const float* starts, const float* s, u8* out, long n) {
  for (long i = 0; i < n; i++) out[i] = code_by_bisection(starts, s[i]);
}
// How many floats of a sign from 2^-42 up to 1 get another code than that of their grid point.
long differing(const u32* entries, const u8* grid, int negative) {
  long wrong = 0;
  for (u32 bits = 85u << 23; bits <= 127u << 23; bits++) {
    float s = float_of(bits | (negative ? 0x80000000u : 0u));
    wrong += by_table(entries, s) != grid[grid_point(s)];
  }
  return wrong;
}
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    """The wrappers as a shared library."""
    folder = tmp_path_factory.mktemp("host")
    source, library = folder / "codec.cpp", folder / "codec.so"
    source.write_text(WRAPPERS)
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run(["g++", *options, str(source), "-o", str(library)], check=True)
    built = ctypes.CDLL(str(library))
    built.differing.restype = built.buckets.restype = ctypes.c_long
    return built


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    """Address of a tensor's data."""
    return ctypes.c_void_p(x.data_ptr())


MAPS = {
    "dynamic": formats.create_dynamic_map(),
    "unsigned": formats.create_dynamic_map(signed=False),
    "linear": formats.create_linear_map(),
    "fp8": formats.create_fp8_map(),
    "zeros": torch.zeros(256),
    "beyond": torch.linspace(-3, 3, 256),
}
UNEVEN = {
    "crowded": torch.cat((torch.linspace(-0.9, -0.89, 128), torch.linspace(0.7, 0.71, 128))),
    "random": torch.randn(256, generator=torch.Generator().manual_seed(2)).sort().values,
}


def tables(host: ctypes.CDLL, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Starts, entries, and whether one comparison tells every bucket."""
    starts = torch.full((256,), float("nan"))
    entries = torch.zeros(2 * host.buckets(), dtype=torch.int32)
    host.make_starts(pointer(code), pointer(starts))
    zero = ctypes.c_uint(int(formats.zero_code(code)))
    exact = host.make_entries(pointer(starts), zero, pointer(entries))
    return starts, entries, bool(exact)


def reference(code: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Codes of scaled values as quantize_blockwise takes them."""
    grid = ((s + 1) * GRID_SCALE + 0.5).floor().nan_to_num(0.0).clamp(0, GRID_POINTS - 1)
    codes = formats.grid_codes(code)[grid.int()]
    return torch.where(s == 0, formats.zero_code(code), codes)


def scaled_values(starts: torch.Tensor) -> torch.Tensor:
    """Values in [-1, 1]: around every start, every bfloat16 and float16, others, and zeros."""
    inner = starts[:255][starts[:255].isfinite()]
    bits = inner.view(torch.int32)
    around = torch.cat([bits + step for step in range(-4, 5)]).view(torch.float32)
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    every = torch.cat((patterns.view(torch.bfloat16).float(), patterns.view(torch.float16).float()))
    uniform = torch.rand(1 << 18, generator=torch.Generator().manual_seed(3)) * 2 - 1
    x = torch.cat((around, every, uniform, uniform * 1e-2, uniform * 1e-4, torch.zeros(2) * -1.0))
    x = x[x.abs() <= 1]
    # `relative` makes no negative zero.
    return torch.where(x == 0, 0.0, x)


@pytest.mark.parametrize("name", MAPS)
def test_codes_by_table_are_the_formats(host, name):
    code = MAPS[name].float().contiguous()
    starts, entries, exact = tables(host, code)
    assert exact
    s = scaled_values(starts)
    codes = torch.empty(s.numel(), dtype=torch.uint8)
    host.codes(pointer(entries), pointer(s), pointer(codes), ctypes.c_long(s.numel()))
    # A start may be off by one float.
    below, above = (torch.nextafter(s, torch.tensor(end)) for end in (-2.0, 2.0))
    allowed = [reference(code, x.clamp(-1, 1)) for x in (s, below, above)]
    wrong = torch.stack([codes != expected for expected in allowed]).all(dim=0)
    assert not wrong.any(), (s[wrong][:5].tolist(), codes[wrong][:5], allowed[0][wrong][:5])
    assert (codes != allowed[0]).float().mean() < 1e-3


@pytest.mark.parametrize("name", UNEVEN)
def test_codes_by_bisection_are_the_formats(host, name):
    code = UNEVEN[name].float().contiguous()
    starts, _, exact = tables(host, code)
    assert not exact, "a map that needs bisection is wanted"
    s = scaled_values(starts)
    s = s[s != 0].contiguous()
    codes = torch.empty(s.numel(), dtype=torch.uint8)
    host.codes_by_bisection(pointer(starts), pointer(s), pointer(codes), ctypes.c_long(s.numel()))
    assert torch.equal(codes, reference(code, s))


@pytest.mark.parametrize("name", ["dynamic", "unsigned", "linear"])
def test_the_smallest_values(host, name):
    code = MAPS[name].float().contiguous()
    _, entries, _ = tables(host, code)
    s = torch.tensor([0.0, 1e-45, 1e-30, 1e-12, -1e-45, -1e-30, -1e-12, -(2.0**-25), -3e-8])
    codes = torch.empty(s.numel(), dtype=torch.uint8)
    host.codes(pointer(entries), pointer(s), pointer(codes), ctypes.c_long(s.numel()))
    assert torch.equal(codes, reference(code, s))


@pytest.mark.parametrize("name", ["dynamic", "unsigned", "linear"])
@pytest.mark.parametrize("inverse", [0.0, 0.5, 1e30])
def test_a_negative_zero_has_the_code_of_zero(host, name, inverse):
    code = MAPS[name].float().contiguous()
    _, entries, _ = tables(host, code)
    x = torch.tensor([-0.0, 0.0, -1e-45])[: 3 if inverse < 1 else 2].contiguous()
    codes = torch.empty(x.numel(), dtype=torch.uint8)
    host.codes_of_block(
        pointer(entries), pointer(x), ctypes.c_float(inverse), pointer(codes),
        ctypes.c_long(x.numel()),
    )  # fmt: skip
    assert codes.unique().tolist() == [formats.zero_code(code).item()]


def test_the_largest_values(host):
    code = MAPS["dynamic"].float().contiguous()
    _, entries, _ = tables(host, code)
    s = torch.tensor([1.0, 1 + 2.0**-23, 1 - 2.0**-24, -1.0, -1 - 2.0**-23])
    codes = torch.empty(s.numel(), dtype=torch.uint8)
    host.codes(pointer(entries), pointer(s), pointer(codes), ctypes.c_long(s.numel()))
    assert codes.tolist() == [255, 255, 255, 0, 0]


@pytest.mark.parametrize("negative", [0, 1])
@pytest.mark.parametrize("name", ["dynamic", "unsigned"])
def test_every_float_has_the_formats_code(host, name, negative):
    if name == "unsigned" and negative:
        pytest.skip("squares are not negative")
    code = MAPS[name].float().contiguous()
    _, entries, exact = tables(host, code)
    assert exact
    # Of a billion.
    assert host.differing(pointer(entries), pointer(formats.grid_codes(code)), negative) <= 4
