"""LLM.int8() ops and functions: codes exactly, products against float64, bad input."""

from __future__ import annotations

import pytest
import torch

from bitsanywhere import functional as F
from bitsanywhere import ops
from bitsanywhere.errors import BitsAnywhereError, DtypeError, InvalidArgumentError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(1, 1), (3, 7), (5, 96), (33, 129), (2, 3, 40), (64,), (0, 8), (3, 0)]

pytestmark = pytest.mark.usefixtures("cpu_implementation")


def activations(shape, dtype, outliers=True) -> torch.Tensor:
    """Values around 1; in every ninth column from the second one large value."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    x = x.clamp(-4, 4)
    if outliers and x.numel():
        rows = x.view(-1, x.shape[-1])
        for i, column in enumerate(range(1, x.shape[-1], 9)):
            rows[i % len(rows), column] = 9.5 + i
    return x.to(dtype)


def by_hand(x: torch.Tensor, threshold: float):
    """Codes, statistics and outlier columns of a matrix, row by row in float64."""
    outlier = x.abs() >= threshold if threshold > 0 else torch.zeros_like(x, dtype=torch.bool)
    columns = [j for j in range(x.shape[1]) if outlier[:, j].any()]
    codes = torch.zeros(x.shape, dtype=torch.int8)
    stats = torch.zeros(len(x))
    for i, row in enumerate(x.double()):
        kept = row.abs()[~outlier[i]]
        stats[i] = kept.max() if len(kept) else 0.0
        if stats[i] > 0:
            scaled = (row * (stats[i].reciprocal() * 127.0).double()).float()
            codes[i] = torch.tensor([round(v) for v in scaled.clamp(-127, 127).tolist()])
    codes[:, columns] = 0
    return codes, stats, columns


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    if wanted.numel() == 0:
        return 0.0
    return float((given.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_by_hand(shape, dtype, threshold):
    x = activations(shape, dtype)
    codes, stats, columns = F.int8_vectorwise_quant(x, threshold)
    wanted = by_hand(x.reshape(-1, shape[-1]) if x.numel() else x.view(shape), threshold)
    assert codes.dtype == torch.int8
    assert codes.shape == x.shape
    assert torch.equal(codes.view(wanted[0].shape), wanted[0])
    assert stats.dtype == torch.float32
    assert torch.equal(stats, wanted[1])
    if threshold == 0:
        assert columns is None
    else:
        assert columns.dtype == torch.int64
        assert columns.tolist() == wanted[2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_hides_its_column_from_codes_but_not_from_statistics(dtype):
    x = torch.tensor([[5.0, 1.0, 2.0], [7.0, 1.0, 1.0]], dtype=dtype)
    codes, stats, columns = F.int8_vectorwise_quant(x, 6.0)
    assert codes.tolist() == [[0, 25, 51], [0, 127, 127]]
    assert stats.tolist() == [5.0, 1.0]
    assert columns.tolist() == [0]


def test_the_threshold_is_rounded_to_the_dtype_of_the_activations():
    x = torch.tensor([[6.109375, 1.0]])
    assert F.int8_vectorwise_quant(x, 6.11)[2].tolist() == []
    assert F.int8_vectorwise_quant(x.half(), 6.11)[2].tolist() == [0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite(dtype):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[nan, 1.0, -2.0], [inf, 1.0, 3.0], [0.0, 0.0, 0.0], [1.0, -inf, 0.5]])
    codes, stats, columns = F.int8_vectorwise_quant(x.to(dtype), 0.0)
    assert codes.tolist() == [[0, 0, 0]] * 4
    assert stats[0].isnan()
    assert stats[1:].tolist() == [inf, 0.0, inf]
    codes, stats, columns = F.int8_vectorwise_quant(x.to(dtype), 6.0)
    assert codes[:, 2].tolist() == [0, 127, 0, 64]
    assert stats[0].isnan()
    assert stats[1:].tolist() == [3.0, 0.0, 1.0]
    assert columns.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_rows_keep_their_signs(dtype):
    x = torch.tensor([[1e-38, -1e-38, 0.0]], dtype=dtype)
    assert F.int8_vectorwise_quant(x)[0].tolist() == [[127, -127, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_does_not_matter(dtype):
    x = activations((24, 40), dtype)
    for view in (x.t(), x[::3, 1:37:2], x.t()[5:9]):
        for given, wanted in zip(F.int8_vectorwise_quant(view, 6.0), by_hand(view, 6.0)):
            assert torch.equal(given, torch.as_tensor(wanted).view(given.shape))


@pytest.mark.parametrize("stats_dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantize(shape, stats_dtype):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    rows = codes.numel() // shape[-1] if shape[-1] else shape[0]
    stats = (torch.rand(rows) + 0.1).to(stats_dtype)
    values = F.int8_vectorwise_dequant(codes, stats)
    assert values.dtype == stats_dtype
    assert values.shape == codes.shape
    wanted = codes.double() * stats.double().view(*shape[:-1], 1) / 127
    assert relative_error(values, wanted) < TOLERANCE[stats_dtype] * 2


@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [((1,), 1, 1), ((3,), 5, 7), ((), 9, 33), ((2, 5), 66, 130), ((40,), 35, 2100), ((17,), 64, 64),
     ((0,), 4, 8), ((3,), 0, 8), ((3,), 5, 0), ((1,), 260, 4097)],
)  # fmt: skip
def test_matmul_is_exact(rows, n, k):
    a = torch.randint(-128, 128, (*rows, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    b[:1] = -128
    wanted = (a.double() @ b.double().t()).to(torch.int32)
    given = F.int8_linear_matmul(a, b)
    assert given.dtype == torch.int32
    assert torch.equal(given, wanted)
    out = torch.full_like(wanted, -1)
    assert F.int8_linear_matmul(a, b, out=out) is out
    assert torch.equal(out, wanted)
    if k > 1 and n > 1:
        turned = b.t().contiguous().t()
        assert torch.equal(F.int8_linear_matmul(a, turned), wanted)
    torch.ops.bitsanywhere.int8_linear_matmul.out(a, b, out.fill_(7))
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("bias_dtype", [None, *DTYPES])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 130), (2, 3, 17), (0, 4), (3, 0)])
def test_mm_dequant(shape, dtype, bias_dtype):
    n = shape[-1]
    product = torch.randint(-(10**7), 10**7, shape, dtype=torch.int32)
    rows = torch.rand(product.numel() // n if n else shape[0]) * 4 + 0.1
    columns = torch.rand(n) + 0.1
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype) * 100
    given = ops.int8_mm_dequant(product, rows, columns, dtype, bias)
    assert given.dtype == dtype
    assert given.shape == shape
    wanted = product.double() * rows.double().view(*shape[:-1], 1) * columns.double() / 127**2
    if bias is not None:
        wanted += bias.double()
    assert relative_error(given, wanted) < TOLERANCE[dtype]
    out = torch.empty(shape, dtype=dtype)
    assert torch.equal(F.int8_mm_dequant(product, rows, columns, out=out, bias=bias), given)
    assert F.int8_mm_dequant(product, rows, columns).dtype == torch.float16


def quantized(n: int, k: int):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n)) / max(k, 1) ** 0.5
    codes, stats, _ = ops.int8_vectorwise_quant(weight, 0.0)
    return codes, stats, codes.double() * stats.double().unsqueeze(1) / 127


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "n"),
    [((1, 1), 1), ((1, 96), 40), ((5, 129), 33), ((2, 3, 40), 67), ((64,), 9), ((0, 8), 4),
     ((3, 8), 0), ((40, 200), 64), ((18, 70), 260)],
)  # fmt: skip
def test_linear_against_float64(shape, n, dtype, with_bias, threshold):
    x = activations(shape, dtype)
    codes, stats, weight = quantized(n, shape[-1])
    bias = torch.randn(n).to(dtype) if with_bias else None
    given = ops.int8_linear(x, codes, stats, threshold, bias)
    assert given.dtype == dtype
    assert given.shape == (*shape[:-1], n)
    ca, sca, columns = ops.int8_vectorwise_quant(x, threshold)
    values = ca.double() * sca.double().view(*shape[:-1], 1) / 127
    if columns is not None:
        values[..., columns] = x.double()[..., columns]
    wanted = values @ weight.t()
    if bias is not None:
        wanted += bias.double()
    assert relative_error(given, wanted) < TOLERANCE[dtype] * 3
    out, sub = ops.int8_mixed_scaled_mm(x, ca, codes, sca, stats, columns, bias)
    assert relative_error(out, wanted) < TOLERANCE[dtype] * 3
    if columns is None:
        assert sub.shape == (0,)
    else:
        assert torch.equal(sub, x.reshape(-1, shape[-1])[:, columns])
    if threshold == 0:
        scaled = ops.int8_scaled_mm(ca, codes, sca, stats, bias, dtype)
        assert relative_error(scaled, wanted) < TOLERANCE[dtype] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_outliers_are_multiplied_in_floating_point(dtype):
    """With a threshold the huge value costs no precision elsewhere; without one it does."""
    x = torch.ones(4, 64, dtype=dtype)
    x[1, 5] = 3000.0
    codes, stats, weight = quantized(16, 64)
    exact = x.double() @ weight.t()
    apart = ops.int8_linear(x, codes, stats, 6.0, None)
    together = ops.int8_linear(x, codes, stats, 0.0, None)
    assert relative_error(apart[1], exact[1]) < TOLERANCE[dtype] * 3
    small = x[1].double().clone()
    small[5] = 0
    rest = small @ weight.t()
    lost = together[1].double() - 3000 * weight[:, 5]
    assert relative_error(lost, rest) > 0.5


def test_non_finite_activations_show(cpu_implementation):
    codes, stats, _ = quantized(8, 16)
    x = torch.ones(3, 16)
    x[0, 3], x[1, 4] = float("nan"), float("inf")
    for threshold in (0.0, 6.0):
        out = ops.int8_linear(x, codes, stats, threshold, None)
        assert out[0].isnan().all()
        assert not out[1].isfinite().any()
        assert out[2].isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (2, 3, 40), (0, 8), (3, 0)])
def test_double_quant(shape, dtype, threshold):
    x = activations(shape, dtype)
    by_row, by_col, rows, cols, outliers = F.int8_double_quant(x, threshold=threshold)
    wanted = ops.int8_vectorwise_quant(x, threshold)
    assert torch.equal(by_row, wanted[0])
    assert torch.equal(rows, wanted[1])
    assert (outliers is None) == (wanted[2] is None)
    matrix = x.reshape(-1, shape[-1]) if x.numel() else x
    kept = matrix.float()
    if threshold:
        kept = torch.where(kept.abs() >= threshold, 0.0, kept)
    assert cols.shape == (shape[-1],)
    codes, stats, _ = by_hand(kept.t(), 0.0)
    assert torch.equal(cols, stats)
    assert torch.equal(by_col.view(matrix.shape), codes.t())
    target = torch.empty_like(by_row)
    assert F.int8_double_quant(x, out_row=target, threshold=threshold)[0] is target


CODES = torch.zeros(3, 8, dtype=torch.int8)
BAD = {
    "quant int": (ops.int8_vectorwise_quant, (CODES, 0.0), DtypeError),
    "quant float64": (ops.int8_vectorwise_quant, (torch.ones(2, 3).double(), 0.0), DtypeError),
    "quant scalar": (ops.int8_vectorwise_quant, (torch.ones(()), 0.0), InvalidArgumentError),
    "double scalar": (ops.int8_double_quant, (torch.ones(()), 0.0), InvalidArgumentError),
    "dequant stats": (ops.int8_vectorwise_dequant, (CODES, torch.ones(4)), InvalidArgumentError),
    "dequant float": (ops.int8_vectorwise_dequant, (CODES.float(), torch.ones(3)), DtypeError),
    "matmul k": (ops.int8_linear_matmul, (CODES, CODES[:, :7]), InvalidArgumentError),
    "matmul dtype": (ops.int8_linear_matmul, (CODES.float(), CODES), DtypeError),
    "matmul 1d": (ops.int8_linear_matmul, (CODES, CODES[0]), InvalidArgumentError),
    "mm dequant a": (ops.int8_mm_dequant, (CODES, torch.ones(3), torch.ones(8)), DtypeError),
    "mm dequant rows": (
        ops.int8_mm_dequant, (CODES.int(), torch.ones(2), torch.ones(8)), InvalidArgumentError
    ),
    "mm dequant half": (
        ops.int8_mm_dequant, (CODES.int(), torch.ones(3).half(), torch.ones(8)), DtypeError
    ),
    "mm dequant bias": (
        ops.int8_mm_dequant,
        (CODES.int(), torch.ones(3), torch.ones(8), None, torch.ones(7)),
        InvalidArgumentError,
    ),
    "mm dequant dtype": (
        ops.int8_mm_dequant, (CODES.int(), torch.ones(3), torch.ones(8), torch.int8), DtypeError
    ),
    "scaled k": (
        ops.int8_scaled_mm, (CODES, CODES[:, :7], torch.ones(3), torch.ones(3)),
        InvalidArgumentError,
    ),
    "mixed shape": (
        ops.int8_mixed_scaled_mm,
        (torch.ones(2, 8), CODES, CODES, torch.ones(3), torch.ones(3)),
        InvalidArgumentError,
    ),
    "mixed outliers": (
        ops.int8_mixed_scaled_mm,
        (torch.ones(3, 8), CODES, CODES, torch.ones(3), torch.ones(3), torch.ones(2)),
        DtypeError,
    ),
    "linear float weight": (
        ops.int8_linear, (torch.ones(2, 8), CODES.float(), torch.ones(3), 0.0, None), DtypeError
    ),
    "linear scales": (
        ops.int8_linear, (torch.ones(2, 8), CODES, torch.ones(2), 0.0, None), InvalidArgumentError
    ),
    "linear bias dtype": (
        ops.int8_linear, (torch.ones(2, 8), CODES, torch.ones(3), 0.0, torch.ones(3).half()),
        DtypeError,
    ),
    "linear k": (
        ops.int8_linear, (torch.ones(2, 7), CODES, torch.ones(3), 0.0, None), InvalidArgumentError
    ),
    "function dtype": (
        F.int8_linear_matmul, (CODES, CODES, None, torch.float16), InvalidArgumentError
    ),
    "function out": (
        F.int8_linear_matmul, (CODES, CODES, torch.ones(3, 3)), InvalidArgumentError
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    function, arguments, error = BAD[case]
    with pytest.raises(error) as caught:
        function(*arguments)
    assert caught.value.why


def test_meta_and_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.device("meta"):
        x, codes = torch.empty(2, 3, 8), torch.empty(5, 8, dtype=torch.int8)
        assert ops.int8_linear(x, codes, torch.empty(5), 6.0, None).shape == (2, 3, 5)
        assert [t.shape for t in ops.int8_vectorwise_quant(x, 0.0)[:2]] == [(2, 3, 8), (6,)]
        with pytest.raises(BitsAnywhereError, match="meta"):
            ops.int8_vectorwise_quant(x, 6.0)
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()):
        x, codes = torch.empty(2, 3, 8), torch.empty(5, 8, dtype=torch.int8)
        ca, sca, columns = torch.ops.bitsanywhere.int8_vectorwise_quant(x, 6.0)
        assert columns.dtype == torch.int64
        out, sub = torch.ops.bitsanywhere.int8_mixed_scaled_mm(
            x, ca, codes, sca, torch.empty(5), columns
        )
        assert out.shape == (2, 3, 5)
        assert sub.shape[0] == 6


@pytest.mark.parametrize("name", ["int8_vectorwise_quant", "int8_linear", "int8_mm_dequant"])
def test_opcheck(name):
    codes, stats, _ = quantized(5, 8)
    arguments = {
        "int8_vectorwise_quant": (torch.randn(3, 8), 0.0),
        "int8_linear": (torch.randn(3, 8), codes, stats, 6.0, None),
        "int8_mm_dequant": (torch.ones(3, 5, dtype=torch.int32), torch.ones(3), stats),
    }[name]
    op = getattr(torch.ops.bitsanywhere, name).default
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
