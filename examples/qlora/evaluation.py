"""How well a model does: perplexity on a text, and scores on the held-out syllogisms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .files import checkpoint
from .syllogisms import Item, is_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SYSTEM = "State the conclusion that follows from the premises, in one short sentence."


@dataclass(frozen=True)
class Scores:
    """Results on the held-out items.

    `chosen` is the share of items whose right answer the model finds likelier, per token, than
    three wrong ones (guessing gives 0.25); `written` the share whose freely written answer is
    one that follows; `log_likelihood` the mean over items of the right answer's log-likelihood
    per token, in nats. `answers` are the freely written ones.
    """

    chosen: float
    written: float
    log_likelihood: float
    items: int
    answers: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def messages(item: Item) -> list[dict[str, str]]:
    """The chat turns that put the item's question."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": item.question}]


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    window: int = 1024,
    stride: int = 512,
) -> float:
    """exp of the mean negative log-likelihood per token of `text`.

    The text is read in windows of `window` tokens that move on by `stride`; each token is scored
    once, with at least `window - stride` tokens before it where the text has them.
    """
    import torch

    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    total, scored, done = 0.0, 0, 1
    for start in range(0, max(1, len(ids) - window + stride), stride):
        checkpoint()
        chunk = ids[start : start + window]
        with torch.inference_mode():
            logits = model(chunk[None].to(model.device), use_cache=False).logits[0]
        lost = torch.nn.functional.cross_entropy(
            logits[done - start - 1 : -1].float(),
            chunk[done - start :].to(model.device),
            reduction="sum",
        )
        total += float(lost)
        scored += len(chunk) - (done - start)
        done = start + len(chunk)
    return math.exp(total / scored)


def sample_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, *, tokens: int = 60
) -> str:
    """The model's greedy answer to a question."""
    return _write(model, tokenizer, [[{"role": "user", "content": question}]], tokens)[0]


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    written: int = 16,
    step: Callable[[], object] = lambda: None,
) -> Scores:
    """Score the model on `items`; the first `written` of them by free writing as well.

    `step` is called after each item, for a progress bar.
    """
    was_training = model.training
    model.eval()
    likelihoods = []
    for item in items:
        checkpoint()
        likelihoods.append(_answer_likelihoods(model, tokenizer, item))
        step()
    asked = list(items[:written])
    answers = _write(model, tokenizer, [messages(item) for item in asked], 24) if asked else []
    model.train(was_training)
    right = sum(is_right(answer, item) for answer, item in zip(answers, asked))
    return Scores(
        chosen=sum(row[0] > max(row[1:]) for row in likelihoods) / len(items),
        written=right / len(asked) if asked else 0.0,
        log_likelihood=sum(row[0] for row in likelihoods) / len(items),
        items=len(items),
        answers=tuple(answers),
    )


def _prompt(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def _answer_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item
) -> list[float]:
    """Log-likelihood per token of the right answer and of each wrong one, in that order."""
    import torch

    device = model.device
    prompt = tokenizer(_prompt(tokenizer, messages(item)), return_tensors="pt").input_ids.to(device)
    ends = [
        tokenizer(answer + tokenizer.eos_token).input_ids for answer in (item.answer, *item.wrong)
    ]
    longest = max(map(len, ends))
    padded = torch.tensor([end + [tokenizer.pad_token_id] * (longest - len(end)) for end in ends])
    padded = padded.to(device)
    with torch.inference_mode():
        first = model(prompt, use_cache=True, logits_to_keep=1)
        cache = first.past_key_values
        cache.batch_repeat_interleave(len(ends))
        rest = model(padded[:, :-1], past_key_values=cache).logits
        logits = torch.cat([first.logits.expand(len(ends), -1, -1), rest], dim=1).float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), padded, reduction="none"
        ).cpu()
    return [-float(row[: len(end)].mean()) for row, end in zip(losses, ends)]


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[list[dict[str, str]]],
    tokens: int,
) -> list[str]:
    """Greedy continuations of chats, as one left-padded batch."""
    import torch

    checkpoint()
    prompts = [_prompt(tokenizer, turn) for turn in turns]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    batch = batch.to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **batch, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    written = output[:, batch.input_ids.shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
