"""Suite `roundtrip`: how far quantized weights are from the originals, and how far they may be.

Two questions. On Gaussian tensors, is the error of each format what theory promises? And for each
tensor of the model, as it was loaded, is it what the format can do for those very weights: every
value at the nearest codebook entry, every block scaled by its exact absmax? Real weights are not
Gaussian, so their error over the Gaussian promise is shown, not judged.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from bitsanywhere.formats import codebook4
from bitsanywhere.validate.originals import Originals
from bitsanywhere.validate.plan import OURS, PEER, REFERENCE, Line, Settings
from bitsanywhere.validate.subject import Subject
from bitsanywhere.validate.theory import promised

COLUMNS = (OURS, REFERENCE, PEER)
ALLOWED = 0.01
GAUSSIAN_COLUMNS = 1024
BLOCK4, BLOCK8 = 64, 256


@dataclass(frozen=True)
class Result:
    """Errors are RMS of the difference over RMS of the weights.

    Attributes:
        formats: Gaussian tensors that went through: "nf4", "fp4" (each also "+nested", with 8-bit
            statistics), "dynamic8", "int8".
        measured: their errors.
        theory: the expected ones.
        names: weights of the model.
        errors: their errors.
        best: the least error that NF4 could have on them; empty for the reference.
        left_out: quantized layers whose original the model's folder does not have by that name.
    """

    formats: tuple[str, ...]
    measured: tuple[float, ...]
    theory: tuple[float, ...]
    names: tuple[str, ...]
    errors: tuple[float, ...]
    best: tuple[float, ...]
    left_out: tuple[str, ...]


def measure(subject: Subject) -> Result:
    """Loads the column's model and compares its weights with those of the bf16 folder."""
    if subject.column == REFERENCE:
        return _reference(subject)
    formats, measured, theory = gaussian(subject)
    originals = Originals(subject.original)
    names, errors, best, left_out = [], [], [], []
    layers = quantized_layers(subject.model())
    for name, layer in tqdm(layers.items(), desc=f"roundtrip, {subject.column}", leave=False):
        weight = originals.get(f"{name}.weight")
        if weight is None:
            left_out.append(name)
            continue
        weight = weight.to(layer.weight.device).float()
        names.append(name)
        errors.append(relative_error(dequantized(layer), weight))
        state = layer.weight.quant_state
        best.append(relative_error(nearest(weight, state.quant_type, state.blocksize), weight))
    return Result(
        formats, measured, theory, tuple(names), tuple(errors), tuple(best), tuple(left_out)
    )


def _reference(subject: Subject) -> Result:
    originals, others = Originals(subject.original), Originals(subject.folder)
    names, errors, left_out = [], [], []
    for name in originals.linear_weights():
        weight, other = originals.get(name), others.get(name)
        if weight is None or other is None or weight.shape != other.shape:
            left_out.append(name.removesuffix(".weight"))
            continue
        names.append(name.removesuffix(".weight"))
        errors.append(relative_error(other.float(), weight.float()))
    return Result((), (), (), tuple(names), tuple(errors), (), tuple(left_out))


def quantized_layers(model: torch.nn.Module) -> dict[str, Any]:
    """The model's layers whose weight is stored in 4 bits, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None
    }


def dequantized(layer: Any) -> torch.Tensor:
    """The layer's weight as its format stores it: float32, not rounded to the model's dtype."""
    functional = importlib.import_module("bitsandbytes").functional
    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    return functional.dequantize_4bit(layer.weight.data, state)


def nearest(weight: torch.Tensor, quant_type: str, blocksize: int) -> torch.Tensor:
    """``weight`` with each value at the nearest codebook entry times its block's absmax.

    In float64 and from the definition, so that it can judge any implementation. Blocks run over
    the flattened tensor; the last may be short.
    """
    format4 = codebook4(quant_type)
    values = format4.tensor(weight.device).double().sort().values
    middles = (values[1:] + values[:-1]) / 2
    flat = weight.double().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % blocksize)).view(-1, blocksize)
    absmax = padded.abs().amax(dim=1, keepdim=True)
    scaled = padded / absmax.where(absmax > 0, 1)
    found = values[torch.bucketize(scaled, middles)] * absmax
    return found.flatten()[: len(flat)].view(weight.shape)


def relative_error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    """RMS of the difference over the RMS of what was wanted; 0 for equal tensors of zeros."""
    difference = (given.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm()) if difference else 0.0


def gaussian(subject: Subject) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Formats, measured errors and expected ones of a standard normal float32 tensor."""
    functional = importlib.import_module("bitsandbytes").functional
    generator = torch.Generator().manual_seed(subject.settings.seed)
    shape = (subject.settings.gaussian_rows, GAUSSIAN_COLUMNS)
    weight = torch.randn(shape, generator=generator).to(subject.device)
    rows = []
    for quant_type in ("nf4", "fp4"):
        for nested in (False, True):
            packed, state = functional.quantize_4bit(
                weight, blocksize=BLOCK4, compress_statistics=nested, quant_type=quant_type
            )
            error = relative_error(functional.dequantize_4bit(packed, state), weight)
            name = f"{quant_type}{'+nested' * nested}"
            rows.append((name, error, promised(quant_type, BLOCK4)))
    codes, state = functional.quantize_blockwise(weight, blocksize=BLOCK8)
    error = relative_error(functional.dequantize_blockwise(codes, state), weight)
    rows.append(("dynamic8", error, promised("dynamic8", BLOCK8)))
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    error = relative_error(functional.int8_vectorwise_dequant(codes, scales), weight)
    rows.append(("int8", error, promised("int8", GAUSSIAN_COLUMNS)))
    formats, measured, theory = zip(*rows)
    return formats, measured, theory


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """A line for each format, and one for the worst tensor of the model."""
    ours, peer = columns[OURS], columns.get(PEER)
    lines = [
        Line(
            f"{name}: error on Gaussian weights off theory",
            abs(ours.measured[i] / ours.theory[i] - 1),
            ALLOWED,
            "what the codebook and the statistics of a block's largest value promise",
            abs(peer.measured[i] / peer.theory[i] - 1) if peer else None,
        )
        for i, name in enumerate(ours.formats)
    ]
    lines.append(
        Line(
            "worst tensor: error over the least that NF4 allows, less one",
            excess(ours),
            ALLOWED,
            "nearest entries and exact absmax, by brute force in float64; the 8-bit absmax and "
            "bf16 add a little",
            excess(peer) if peer else None,
        )
    )
    return tuple(lines)


def excess(result: Result) -> float:
    """How far the worst tensor is above the least error possible, relative to that."""
    ratios = [error / best for error, best in zip(result.errors, result.best) if best]
    return max(ratios, default=1.0) - 1
