"""Suite `logits`: what the model says of a text, in bf16 and in 4 bits.

Per token: the negative log-likelihood, the Kullback-Leibler divergence of the column from bf16,
KL(bf16 || column), and whether both put the same token first. The text is the project's own and
is read in pieces that do not depend on each other, which the bootstrap draws from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from bitsanywhere.validate.plan import BF16, DEQUANTIZED, OURS, PEER, REFERENCE, Line, Settings
from bitsanywhere.validate.statistics import Interval, ratio_interval
from bitsanywhere.validate.subject import Subject

COLUMNS = (BF16, OURS, DEQUANTIZED, REFERENCE, PEER)
TEXTS = ("harbour.txt",)
ALLOWED_RISE = 0.15
ALLOWED_KERNELS = 0.01


@dataclass(frozen=True)
class Result:
    """Sums over the tokens of each piece.

    Attributes:
        tokens: tokens that were predicted.
        nll: negative log-likelihood, in nats.
        kl: divergence from bf16, in nats.
        agree: tokens whose likeliest next token is that of bf16.
    """

    tokens: tuple[int, ...]
    nll: tuple[float, ...]
    kl: tuple[float, ...]
    agree: tuple[int, ...]


def pieces(subject: Subject) -> list[torch.Tensor]:
    """The texts as token ids of shape (block_tokens,); what is left of a text at its end is too."""
    tokenizer = subject.tokenizer()
    found = []
    for name in TEXTS:
        text = (resources.files(__package__ or "") / "text" / name).read_text("utf-8")
        ids = torch.tensor(tokenizer(text).input_ids)
        found += [piece for piece in ids.split(subject.settings.block_tokens) if len(piece) > 1]
    return found


def measure(subject: Subject) -> Result:
    """Reads the text. The bf16 column, which comes first, leaves its logits in ``scratch``."""
    path = subject.scratch / "logits.safetensors"
    parts = pieces(subject)
    model = subject.model()
    kept: dict[str, torch.Tensor] = {}
    rows = []
    for i, ids in enumerate(tqdm(parts, desc=f"logits, {subject.column}", leave=False)):
        ids = ids.to(model.device)
        with torch.inference_mode():
            logits = model(ids[None]).logits[0, :-1]
        if subject.column == BF16:
            kept[str(i)] = base = logits.cpu()
        else:
            with safe_open(path, "pt") as file:
                base = file.get_tensor(str(i))
        rows.append(_compare(logits.cpu(), base, ids[1:].cpu()))
    if subject.column == BF16:
        save_file(kept, path)
    tokens, nll, kl, agree = zip(*rows)
    return Result(tokens, nll, kl, agree)


def _compare(
    given: torch.Tensor, base: torch.Tensor, targets: torch.Tensor
) -> tuple[int, float, float, int]:
    """Sums over one piece; logits are (tokens, vocabulary)."""
    ours, theirs = given.float().log_softmax(-1), base.float().log_softmax(-1)
    kl = (theirs.exp() * (theirs - ours)).sum(-1).clamp(min=0)
    nll = -ours.gather(-1, targets[:, None])
    agree = given.argmax(-1) == base.argmax(-1)
    return len(targets), float(nll.double().sum()), float(kl.double().sum()), int(agree.sum())


@dataclass(frozen=True)
class Summary:
    """One column's figures with 95 % intervals; ``ratio`` is its perplexity over that of bf16."""

    perplexity: Interval
    ratio: Interval
    kl: Interval
    agreement: Interval


def summary(result: Result, base: Result, settings: Settings) -> Summary:
    """Perplexity, its ratio to bf16, KL divergence per token and top-1 agreement of a column."""

    def over(sums) -> Interval:
        return ratio_interval(sums, result.tokens, resamples=settings.resamples, seed=settings.seed)

    rise = [ours - theirs for ours, theirs in zip(result.nll, base.nll)]
    return Summary(
        over(result.nll).map(math.exp),
        over(rise).map(math.exp),
        over(result.kl),
        over(result.agree),
    )


def judge(columns: Mapping[str, Result], settings: Settings) -> tuple[Line, ...]:
    """The lines: the price of the format, and that our kernels add nothing to it."""
    ours = summary(columns[OURS], columns[BF16], settings)
    plain = summary(columns[DEQUANTIZED], columns[BF16], settings)
    peer = columns.get(PEER)
    theirs = summary(peer, columns[BF16], settings) if peer else None
    return (
        Line(
            "perplexity in 4 bits over bf16, less one",
            ours.ratio.value - 1,
            ALLOWED_RISE,
            "what NF4 may cost a small model; large ones lose far less",
            theirs.ratio.value - 1 if theirs else None,
        ),
        Line(
            "perplexity in 4 bits against that of the same weights multiplied by torch",
            abs(ours.perplexity.value / plain.perplexity.value - 1),
            ALLOWED_KERNELS,
            "the kernels may round differently, no more",
            abs(theirs.perplexity.value / plain.perplexity.value - 1) if theirs else None,
        ),
    )
