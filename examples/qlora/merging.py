"""Saving the adapter, loading it again, and merging it: do all the ways agree?

Three checks, each with its tolerance and the reason for it:

reload
    The saved adapter on a freshly quantized model must give the logits of the model that was
    trained, bit for bit: quantizing is deterministic and the adapter is stored as it is. A GPU
    may add up in another order each time, so there the next tolerance holds.
merge into bf16
    The 4-bit weights are dequantized to bf16 and the adapter's product is added. Nothing is
    quantized again; what differs is rounding to bf16 (at most 0.2 % a time), of the sum and of
    what passes through the layers. The logits may differ by `BF16_TOLERANCE`.
merge into 4 bits
    The sum is quantized to NF4 once more: each weight goes to the nearest of 16 levels. For
    weights spread like a bell curve and 64 of them a block, that costs 9 % (root mean square);
    each merged weight matrix may be off by `NF4_TOLERANCE`. But most of the adapter's changes
    are smaller than half the distance between two levels, and rounding undoes those: the merged
    model keeps a part of what was learned. At worst it is the 4-bit model without the adapter,
    with a rounding error like the first one's; the two are independent and add in squares, and
    that is what the logits may differ by. To keep what was learned, merge into bf16.

Differences of logits are relative: root mean square of the difference over that of the logits,
each row centred, since a shift common to all tokens changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .evaluation import messages
from .files import checkpoint
from .syllogisms import Item

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BF16_TOLERANCE = 0.05
NF4_TOLERANCE = 0.12


@dataclass(frozen=True)
class Check:
    """One comparison: what was measured, what is allowed, and whether it holds."""

    name: str
    measured: float
    allowed: float
    reason: str

    @property
    def passed(self) -> bool:
        return self.measured <= self.allowed

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter (safetensors and its config) into an existing folder."""
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


def attach(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The model with the saved adapter on it, for inference, adapter weights as stored."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).eval()


def probe(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> torch.Tensor:
    """float32 logits [tokens, vocabulary] on the items' answers, each row centred."""
    import torch

    rows = []
    was_training = model.training
    model.eval()
    for item in items:
        checkpoint()
        turns = [*messages(item), {"role": "assistant", "content": item.answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        with torch.inference_mode():
            rows.append(model(ids, logits_to_keep=16, use_cache=False).logits[0].float().cpu())
    model.train(was_training)
    logits = torch.cat(rows)
    return logits - logits.mean(dim=-1, keepdim=True)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of a - b over that of b."""
    return float((a - b).norm() / b.norm())


def expected_weights(model: PeftModel, *, every: int = 15) -> dict[str, torch.Tensor]:
    """What exact merging would give, in float32, for every fifteenth of the adapted layers.

    A transformer block has seven of them, so the kinds take turns.
    """
    from bitsandbytes.functional import dequantize_4bit

    inner = model.base_model.model
    adapted = [(n, m) for n, m in inner.named_modules() if hasattr(m, "get_delta_weight")]
    found = {}
    for name, module in adapted[::every]:
        weight = module.get_base_layer().weight
        values = dequantize_4bit(weight.data, weight.quant_state).float()
        found[name] = values + module.get_delta_weight("default").float()
    return found


def weight_error(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> float:
    """The largest relative error (root mean square) among the merged 4-bit weights."""
    from bitsandbytes.functional import dequantize_4bit

    worst = 0.0
    for name, wanted in expected.items():
        weight = model.get_submodule(name).weight
        worst = max(
            worst, difference(dequantize_4bit(weight.data, weight.quant_state).float(), wanted)
        )
    return worst


def checks(
    *,
    trained: torch.Tensor,
    reloaded: torch.Tensor,
    merged_bf16: torch.Tensor,
    merged_nf4: torch.Tensor,
    untrained: torch.Tensor,
    first_error: float,
    weight_error: float,
    device: str,
) -> list[Check]:
    """The checks of this module from the probes' logits; see its docstring for the reasons."""
    return [
        Check(
            "adapter saved and reloaded",
            difference(reloaded, trained),
            0.0 if device == "cpu" else BF16_TOLERANCE,
            "the same numbers: bit for bit (on a GPU, in any order of summing)",
        ),
        Check(
            "merged into bf16, against unmerged",
            difference(merged_bf16, reloaded),
            BF16_TOLERANCE,
            "rounding to bf16 only, 0.2 % a time, through all layers",
        ),
        Check(
            "merged into 4 bits, against unmerged",
            difference(merged_nf4, reloaded),
            math.hypot(difference(untrained, reloaded), first_error),
            "rounding undoes small changes: at worst the adapter's effect is lost, and the first "
            "rounding error made again",
        ),
        Check(
            "weights merged into 4 bits, against the exact sum",
            weight_error,
            NF4_TOLERANCE,
            "NF4 rounds bell-shaped weights with an error of 9 %",
        ),
    ]
