"""What gemm_4bit hands to the driver: a fake one, tensors in the host's memory, no GPU."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
import torch

from bitsanywhere.backends.cuda import gemm_4bit
from bitsanywhere.backends.cuda.gemm_4bit import Product
from bitsanywhere.backends.cuda.gemm_4bit_config import choose
from bitsanywhere.backends.cuda.jit import Bound
from bitsanywhere.targets import known

HOST = -1
N, K = 48, 128


@pytest.fixture
def launches(monkeypatch) -> list[tuple]:
    """(source, stream, fields of the kernel's arguments) of every launch."""
    seen: list[tuple] = []

    def get_kernel(source, target, index):
        def bind(grid, block, shared, layout, overlap=False):
            # The numbers of the structure one by one.
            fields = layout.replace("32s", "3q2I")
            return Bound(
                struct.Struct(layout).pack,
                lambda stream, packed: seen.append((source, stream, struct.unpack(fields, packed))),
            )

        return SimpleNamespace(bind=bind)

    monkeypatch.setattr(gemm_4bit, "get_kernel", get_kernel)
    monkeypatch.setattr(gemm_4bit, "current_stream", lambda index: 7)
    monkeypatch.setattr(
        gemm_4bit, "workspace", lambda *args: SimpleNamespace(addresses=(0x1000, 0x2000))
    )
    monkeypatch.setattr(gemm_4bit, "Target", SimpleNamespace(of=lambda device: known("agx-orin")))
    monkeypatch.setattr(torch, "device", lambda *args: None)
    gemm_4bit._plan.cache_clear()
    yield seen
    gemm_4bit._plan.cache_clear()


@pytest.fixture
def weight() -> SimpleNamespace:
    """Codes, plain and nested statistics, the codebook: contents do not matter here."""
    blocks = N * K // 64
    return SimpleNamespace(
        codes=torch.zeros(N * K // 2, 1, dtype=torch.uint8),
        plain=(torch.ones(blocks),),
        nested=(torch.ones(1), torch.zeros(blocks, dtype=torch.uint8), torch.ones(256),
                torch.ones(())),
        code=torch.ones(16),
    )  # fmt: skip


def product(weight: SimpleNamespace, *nested, codes=None, index=HOST) -> Product:
    absmax, *others = nested or weight.plain
    codes = weight.codes if codes is None else codes
    return Product(index, codes, (N, K), absmax, tuple(others) or None, 64, weight.code)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_every_field_arrives(launches, weight, nested, with_bias):
    statistics = weight.nested if nested else weight.plain
    bias = torch.ones(N, dtype=torch.bfloat16) if with_bias else None
    A = torch.ones(2, 3, K, dtype=torch.bfloat16)
    out = product(weight, *statistics)(A, weight.codes, bias)
    assert (out.shape, out.dtype) == ((2, 3, N), torch.bfloat16)
    ((_, stream, fields),) = launches
    assert stream == 7
    pointers = [x.data_ptr() for x in (A, weight.codes, *statistics)]
    pointers += [0] * (6 - len(pointers))
    bias_pointer = 0 if bias is None else bias.data_ptr()
    assert fields[:9] == (*pointers, weight.code.data_ptr(), bias_pointer, out.data_ptr())
    assert fields[9:11] in ((0, 0), (0x1000, 0x2000))
    config = choose(6, N, K, torch.bfloat16, 64, known("agx-orin"))
    assert fields[11:] == (6, N, K, 6, getattr(config, "stages", 0), b"")


def test_another_number_of_rows_or_dtype_is_another_plan(launches, weight):
    multiply = product(weight)
    for rows, dtype in (
        (1, torch.float16),
        (9, torch.float16),
        (9, torch.bfloat16),
        (1, torch.float16),
    ):
        out = multiply(torch.ones(rows, K, dtype=dtype), weight.codes, None)
        assert (out.shape, out.dtype) == ((rows, N), dtype)
    assert [fields[11] for *_, fields in launches] == [1, 9, 9, 1]
    assert launches[0][0] == launches[3][0]
    assert len({source for source, *_ in launches}) == 3


def test_an_odd_address_of_the_weight_has_its_own_plan(launches, weight):
    odd = torch.zeros(N * K // 2 + 1, dtype=torch.uint8)[1:]
    A = torch.ones(2, K, dtype=torch.float16)
    for codes in (weight.codes, odd, weight.codes):
        product(weight, codes=codes)(A, codes, None)
    aligned, other, again = (source for source, *_ in launches)
    assert aligned == again != other
    assert other.file == "gemm_4bit_general.cuh"


def test_activations_are_copied_only_where_they_must_be(launches, weight):
    multiply = product(weight)
    wide = torch.ones(4, 2 * K + 1, dtype=torch.float16)
    for A, copied in (
        (wide[:, : 2 * K : 2], True), (wide.flatten()[1 : K + 1].view(1, K), True),
        (torch.ones(4, K, dtype=torch.float16), False),
    ):  # fmt: skip
        multiply(A, weight.codes, None)
        assert (launches[-1][2][0] != A.data_ptr()) is copied
        assert launches[-1][2][0] % 16 == 0


def test_what_does_not_fit_is_not_launched(launches, weight):
    multiply = product(weight)
    right = torch.ones(3, K, dtype=torch.float16)
    bias = torch.ones(N, dtype=torch.float16)
    multiply(right, weight.codes, bias)
    for A, other_bias in (
        (right[:, 1:], None), (right.double(), None), (right.int(), None), (right[0, 0], None),
        (right, bias.float()), (right, bias[1:]), (right, torch.ones(2 * N).half()[::2]),
    ):  # fmt: skip
        assert multiply(A, weight.codes, other_bias) is None
    assert product(weight, index=0)(right, weight.codes, None) is None
    assert multiply(right, weight.codes.clone(), None) is None, "the weight has moved"
    assert len(launches) == 1


def test_nothing_is_launched_for_nothing(launches, weight):
    empty = torch.ones(0, K, dtype=torch.float16)
    assert product(weight)(empty, weight.codes, None).shape == (0, N)
    assert launches == []


def test_another_thread_may_ask_for_other_rows_meanwhile(launches, weight):
    class Interrupted(Product):
        """Computes five rows whenever the plan for two was noted."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_last" and value.m == 2:
                self(torch.ones(5, K, dtype=torch.float16), weight.codes, None)

    multiply = Interrupted(HOST, weight.codes, (N, K), *weight.plain, None, 64, weight.code)
    out = multiply(torch.ones(2, K, dtype=torch.float16), weight.codes, None)
    assert out.shape == (2, N)
    assert [fields[11] for *_, fields in launches] == [5, 2]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_expected_kernel_is_the_one_of_a_single_row(
    launches, weight, monkeypatch, nested, dtype
):
    begun, device = [], weight.code.device
    monkeypatch.setattr(gemm_4bit, "compile_ahead", lambda sources, index: begun.extend(sources))
    gemm_4bit._expect.cache_clear()
    for _ in range(2):
        gemm_4bit.expect(device, (N, K), 64, nested, dtype)
    gemm_4bit.expect(device, (0, K), 64, nested, dtype)
    gemm_4bit.expect(device, (N, K), 64, nested, torch.float64)
    statistics = weight.nested if nested else weight.plain
    product(weight, *statistics)(torch.ones(1, K, dtype=dtype), weight.codes, None)
    assert begun == [source for source, *_ in launches]
