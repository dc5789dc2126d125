"""What the user of `quantize` may choose, checked, and as transformers wants to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from bitsanywhere.errors import InvalidArgumentError, UnsupportedDeviceError

QUANT_TYPES = ("nf4", "fp4", "int8")
COMPUTE_DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """Settings of one conversion.

    Attributes:
        quant_type: "nf4", "fp4" or "int8".
        double_quant: quantize the 4-bit statistics too.
        compute_dtype: dtype that 4-bit layers shall compute in; None means the model's own.
        skip: names of modules to leave, beside those that transformers leaves.
        device: where to compute, "cpu" or "cuda".
    """

    quant_type: str = "nf4"
    double_quant: bool = False
    compute_dtype: str | None = None
    skip: tuple[str, ...] = ()
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError or UnsupportedDeviceError unless all can be done."""
        _require("quant_type", self.quant_type, QUANT_TYPES)
        _require("device", self.device, DEVICES)
        if self.compute_dtype is not None:
            _require("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if self.quant_type == "int8" and (self.double_quant or self.compute_dtype):
            raise InvalidArgumentError(
                "double_quant or compute_dtype is given with quant_type 'int8'",
                "They are settings of the 4-bit formats.",
                "Leave them out, or choose nf4 or fp4.",
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedDeviceError(
                "device is 'cuda'",
                "torch finds no CUDA GPU here.",
                "Use the device cpu; `bitsanywhere doctor` says what this machine can run.",
            )

    def quantization_config(self, model_dtype: torch.dtype, skip: list[str]) -> dict[str, Any]:
        """The entry of config.json, as transformers' BitsAndBytesConfig writes it.

        Args:
            model_dtype: dtype of the tensors that stay in floating point.
            skip: every module that is left, by name or pattern.
        """
        four = self.quant_type != "int8"
        own = str(model_dtype).removeprefix("torch.")
        return {
            "_load_in_4bit": four,
            "_load_in_8bit": not four,
            "bnb_4bit_compute_dtype": (self.compute_dtype or own) if four else "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.quant_type if four else "fp4",
            "bnb_4bit_use_double_quant": self.double_quant,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": skip,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "quant_method": "bitsandbytes",
        }


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgumentError(f"{name} is {value!r}", f"Allowed are {', '.join(allowed)}.")
