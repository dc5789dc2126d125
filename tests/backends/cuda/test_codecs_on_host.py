"""Headers of pure arithmetic, compiled by the host's g++, compared with formats/ and torch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bitsanywhere import formats
from bitsanywhere.backends import cuda
from bitsanywhere.backends.cuda.parameters import codec4_macros
from bitsanywhere.formats import GRID_POINTS, GRID_SCALE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
HEADERS = Path(cuda.__file__).parent

WRAPPERS = """
#include "convert.cuh"
#include "codec4.cuh"
#include "codec8.cuh"

extern "C" {
void to_floats(const u16* in, float* bf16, float* half, long n) {
  for (long i = 0; i < n; i++) bf16[i] = bf16_to_float(in[i]), half[i] = half_to_float(in[i]);
}
void from_floats(const float* in, u16* bf16, u16* half, long n) {
  for (long i = 0; i < n; i++) {
    u32 b = pack_bf16(in[i], in[i]), h = pack_half(in[i], in[i]);
    bf16[i] = b >> 16 == (b & 0xFFFF) ? b : 0xDEAD, half[i] = h >> 16 == (h & 0xFFFF) ? h : 0xDEAD;
  }
}
void codes4(const float* in, u8* out, long n, int format) {
  Entry4 table[BUCKETS];
  for (u32 i = 0; i < BUCKETS; i++) table[i] = entry4(i, format);
  for (long i = 0; i < n; i += 8) {
    Codes4 codes = {};
    bool inside = true;
    for (int j = 7; j >= 0; j--) {
      u32 bucket = bucket4(in[i + (j ^ 1)]) - FIRST_BUCKET;
      if (bucket < BUCKETS) push4(codes, j ^ 1, in[i + (j ^ 1)], table[bucket]);
      else inside = false;
    }
    u32 word = packed4(codes);
    for (int j = 0; j < 4; j++) out[i / 2 + j] = inside ? (u8)(word >> 8 * j) : 255;
  }
}
void single_codes4(const float* in, u8* out, long n, int format) {
  Entry4 table[BUCKETS];
  for (u32 i = 0; i < BUCKETS; i++) table[i] = entry4(i, format);
  for (long i = 0; i < n; i++) out[i] = (u8)code4(in[i], table[bucket4(in[i]) - FIRST_BUCKET]);
}
void grid_points(const float* in, int* out, long n) {
  for (long i = 0; i < n; i++) out[i] = grid_point(in[i]);
}
void grid_values(double* out) {
  for (int k = 0; k <= GRID_POINTS; k++) out[k] = grid_value(k);
}
void grid_table(const float* code, u8* out) {
  u32 at = 0;
  for (u32 i = 0; i < 255; i++)
    for (u32 start = first_point(midpoint8(code, i)); at < start; at++) out[at] = i;
  for (; at < GRID_POINTS; at++) out[at] = 255;
}
}
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    """The wrappers as a shared library."""
    folder = tmp_path_factory.mktemp("host")
    source, library = folder / "wrappers.cpp", folder / "wrappers.so"
    source.write_text(WRAPPERS)
    macros = [f"-D{name}={value}" for name, value in codec4_macros()]
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HEADERS}"]
    subprocess.run(["g++", *options, *macros, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    """Address of a tensor's data."""
    return ctypes.c_void_p(x.data_ptr())


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """Each float32 of x, and the three below and above it."""
    bits = x.float().contiguous().view(torch.int32)
    return torch.cat([bits + step for step in range(-3, 4)]).view(torch.float32)


def scaled_values() -> torch.Tensor:
    """Scaled values as quantization meets them: every bfloat16 and float16 in [-1, 1], and more."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    x = torch.cat((patterns.view(torch.bfloat16).float(), patterns.view(torch.float16).float()))
    x = x[x.abs() <= 1]
    uniform = torch.rand(1 << 20, generator=torch.Generator().manual_seed(1)) * 2 - 1
    almost_one = torch.tensor([1.0, -1.0]).repeat(2) * (1 + torch.finfo(torch.float32).eps)
    return torch.cat((x, uniform, uniform * 1e-3, almost_one, torch.tensor([0.0, -0.0])))


def test_every_16_bit_pattern_becomes_its_float(host):
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    bf16, half = torch.empty(1 << 16), torch.empty(1 << 16)
    host.to_floats(pointer(patterns), pointer(bf16), pointer(half), ctypes.c_long(1 << 16))
    assert torch.equal(bf16.view(torch.int32), patterns.to(torch.int32) << 16)
    expected = patterns.view(torch.float16).float()
    assert torch.equal(half.isnan(), expected.isnan())
    assert torch.equal(
        half.nan_to_num(7.0).view(torch.int32), expected.nan_to_num(7.0).view(torch.int32)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_floats_are_rounded_as_torch_does(host, dtype):
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    # Around every value and around the middle of every two.
    upper = torch.cat((patterns[1:], patterns[:1]))
    x = torch.cat(
        (neighbours(patterns), neighbours((patterns.double() + upper.double()).div(2).float()))
    )
    bf16 = torch.empty(x.numel(), dtype=torch.int16)
    half = torch.empty_like(bf16)
    host.from_floats(pointer(x), pointer(bf16), pointer(half), ctypes.c_long(x.numel()))
    got, expected = (bf16 if dtype == torch.bfloat16 else half).view(dtype), x.to(dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    number = ~expected.isnan()
    assert torch.equal(got[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_4bit_codes_are_the_formats(host, quant_type):
    format4 = formats.codebook4(quant_type)
    place = list(formats.FORMATS4).index(quant_type)
    thresholds = torch.tensor(format4.thresholds)
    sixteenths = torch.arange(-33, 34) / 32
    x = torch.cat((scaled_values(), neighbours(thresholds), neighbours(sixteenths)))
    x = x[x.abs() <= 1 + torch.finfo(torch.float32).eps]
    # Each value once at every place of a word.
    x = x[: x.numel() // 8 * 8]
    expected = torch.tensor(format4.order, dtype=torch.uint8)[torch.bucketize(x, thresholds)]
    codes = torch.empty(x.numel(), dtype=torch.uint8)
    host.single_codes4(pointer(x), pointer(codes), ctypes.c_long(x.numel()), place)
    assert torch.equal(codes, expected)
    for shift in range(8):
        if shift:
            x, expected = x.roll(1), expected.roll(1)
        packed = torch.empty(x.numel() // 2, dtype=torch.uint8)
        host.codes4(pointer(x), pointer(packed), ctypes.c_long(x.numel()), place)
        codes = torch.stack((packed >> 4, packed & 15), 1).view(-1)
        assert torch.equal(codes, expected)


def test_grid_points_are_the_formats(host):
    # s + 1 is rounded to a multiple of 2^-24 (of 2^-23 from 1 on): these are all there are.
    sums = torch.arange((1 << 25) + 1, dtype=torch.float64).mul(2.0**-24).float().unique()
    x = torch.cat((scaled_values(), sums - 1))
    points = torch.empty(x.numel(), dtype=torch.int32)
    host.grid_points(pointer(x), pointer(points), ctypes.c_long(x.numel()))
    expected = ((x + 1) * GRID_SCALE + 0.5).floor().clamp(0, GRID_POINTS - 1)
    assert torch.equal(points, expected.int())


def test_the_value_of_every_grid_point(host):
    values = torch.empty(GRID_POINTS + 1, dtype=torch.float64)
    host.grid_values(pointer(values))
    assert torch.equal(values, torch.arange(GRID_POINTS + 1).double() / GRID_SCALE - 1)


@pytest.mark.parametrize("seed", range(4))
def test_grid_tables_are_the_formats(host, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [
        formats.create_dynamic_map(),
        formats.create_dynamic_map(signed=False),
        formats.create_linear_map(),
        formats.create_fp8_map(),
        torch.randn(256, generator=generator).sort().values,
        (torch.rand(256, generator=generator) * 1e-4).sort().values,
    ]
    for code in maps:
        code = code.float().contiguous()
        table = torch.empty(GRID_POINTS, dtype=torch.uint8)
        host.grid_table(pointer(code), pointer(table))
        assert torch.equal(table, formats.grid_codes(code))
