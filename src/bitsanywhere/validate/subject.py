"""One column's model, and how it is loaded. Nothing is downloaded, unpickled or trusted to run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitsanywhere.validate.plan import DEQUANTIZED, OURS, PEER, REFERENCE, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOUR_BIT = (OURS, PEER, DEQUANTIZED)


@dataclass(frozen=True)
class Subject:
    """What a suite measures.

    Attributes:
        column: its name; see `plan`.
        original: folder of the bf16 model.
        reference: folder of the other model, if there is one.
        device: "cpu" or "cuda".
        scratch: a folder that the columns of one suite share.
    """

    column: str
    original: Path
    reference: Path | None
    device: str
    settings: Settings
    scratch: Path

    @property
    def folder(self) -> Path:
        """Where this column's weights come from."""
        if self.column != REFERENCE:
            return self.original
        assert self.reference is not None
        return self.reference

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The original's tokenizer, which every column reads with; padding is by its own token."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            self.original, local_files_only=True, trust_remote_code=False
        )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def model(self) -> PreTrainedModel:
        """The column's model in eval mode: plain, or NF4 with double quantization."""
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = getattr(torch, self.settings.dtype)
        extra: dict[str, Any] = {}
        if self.column in FOUR_BIT:
            extra["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=dtype,
            device_map={"": torch.device(self.device)},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **extra,
        )
        if self.column == DEQUANTIZED:
            model = model.dequantize()
        return model.eval()


def now(device: str) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
