"""How a model does on sorites: which of four conclusions it finds likeliest, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from bitsanywhere.validate.sorites import Item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOGETHER = 8
TASK = "State the conclusion that follows from all of the premises together, in one short sentence."


@dataclass(frozen=True)
class Reader:
    """A tokenizer that puts problems, as chats where it has a chat template."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def _chats(self) -> bool:
        return self.tokenizer.chat_template is not None

    def prompt(self, item: Item) -> str:
        """The problem as text, up to where the answer begins."""
        if not self._chats:
            return f"{TASK}\n\n{item.question}\n\nConclusion: "
        turns = [{"role": "system", "content": TASK}, {"role": "user", "content": item.question}]
        text: Any = self.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        return text

    def prompt_ids(self, item: Item) -> list[int]:
        """Tokens of the prompt; a chat template brings its own special tokens."""
        return self.tokenizer(self.prompt(item), add_special_tokens=not self._chats).input_ids

    def answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer, with the one that ends it."""
        end: Any = self.tokenizer.eos_token or ""
        return self.tokenizer(answer + end, add_special_tokens=False).input_ids

    def batch(self, items: Sequence[Item], device: str) -> dict[str, torch.Tensor]:
        """Problems with their answers for training; tensors of shape (items, length).

        "input_ids", padded on the right; "attention_mask", 0 there; "answers", 1 on the tokens of
        the answer and of its end.
        """
        pairs = [(self.prompt_ids(item), self.answer_ids(item.answer)) for item in items]
        length = max(len(prompt) + len(answer) for prompt, answer in pairs)
        pad: Any = self.tokenizer.pad_token_id
        ids = torch.full((len(items), length), pad)
        mask, answers = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(pairs):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            mask[row, :end] = 1
            answers[row, len(prompt) : end] = 1
        tensors = {"input_ids": ids, "attention_mask": mask, "answers": answers}
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def likelihoods(model: Any, reader: Reader, items: Sequence[Item]) -> list[tuple[float, ...]]:
    """Log-likelihood per token, in nats, of each item's right answer and of each wrong one.

    The prompts are read once, as one batch padded on the left; all answers continue it as one
    batch padded on the right.
    """
    prompts, mask = left_padded([reader.prompt_ids(item) for item in items])
    ends = [reader.answer_ids(text) for item in items for text in (item.answer, *item.wrong)]
    answers = torch.nn.utils.rnn.pad_sequence([torch.tensor(end) for end in ends], True)
    each = len(ends) // len(items)
    positions = mask.cumsum(dim=1)
    after = positions[:, -1:].repeat_interleave(each, 0) + torch.arange(answers.shape[1] - 1)
    wide = torch.cat([mask.repeat_interleave(each, 0), torch.ones_like(answers[:, 1:])], dim=1)
    to = model.device
    with torch.inference_mode():
        first = model(
            input_ids=prompts.to(to),
            attention_mask=mask.to(to),
            position_ids=(positions - 1).clamp(min=0).to(to),
            logits_to_keep=1,
            use_cache=True,
        )
        cache = first.past_key_values
        cache.batch_repeat_interleave(each)
        rest = model(
            input_ids=answers[:, :-1].to(to),
            attention_mask=wide.to(to),
            position_ids=after.to(to),
            past_key_values=cache,
        ).logits
        before = first.logits[:, -1:].repeat_interleave(each, 0)
        logits = torch.cat([before, rest], dim=1).float()
        losses = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), answers.to(to), reduction="none"
        ).cpu()
    means = [-float(row[: len(end)].mean()) for row, end in zip(losses, ends)]
    return [tuple(means[i : i + each]) for i in range(0, len(means), each)]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape (rows, length); each row ends at the last column."""
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def all_likelihoods(
    model: Any, reader: Reader, items: Sequence[Item], label: str
) -> tuple[tuple[float, ...], ...]:
    """`likelihoods` of every item, with a progress bar."""
    starts = tqdm(range(0, len(items), TOGETHER), desc=label, leave=False)
    return tuple(row for i in starts for row in likelihoods(model, reader, items[i : i + TOGETHER]))


def chosen(rows: Sequence[Sequence[float]]) -> list[int]:
    """1 where the right answer, the first of the row, is likelier than every wrong one."""
    return [int(row[0] > max(row[1:])) for row in rows]


def write(model: Any, reader: Reader, items: Sequence[Item], tokens: int) -> tuple[str, ...]:
    """Greedy answers of at most ``tokens`` tokens, all problems as one batch."""
    ids, mask = left_padded([reader.prompt_ids(item) for item in items])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=reader.tokenizer.pad_token_id,
        )
    texts = reader.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return tuple(text.strip() for text in texts)
