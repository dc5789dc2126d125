"""Each suite on a tiny random Llama, and its pass lines on results that are known."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from bitsanywhere.validate import carroll, logits, roundtrip, speed, training
from bitsanywhere.validate.plan import BF16, DEQUANTIZED, OURS, PEER, REFERENCE, Plan
from bitsanywhere.validate.subject import Subject

pytestmark = pytest.mark.usefixtures("ours_as_bitsandbytes")


@pytest.fixture
def subject(tiny_plan: Plan, tmp_path: Path):
    """The tiny model as a column's subject; it is its own reference."""

    def make(column: str) -> Subject:
        return Subject(
            column, tiny_plan.model, tiny_plan.model, "cpu", tiny_plan.settings, tmp_path
        )

    return make


def test_roundtrip(subject):
    ours, reference = (roundtrip.measure(subject(column)) for column in (OURS, REFERENCE))
    assert len(ours.names) == 14
    assert ours.left_out == reference.left_out == ()
    assert set(reference.names) == set(ours.names)
    assert set(reference.errors) == {0.0}
    assert all(0.08 < error < 0.1 for error in ours.errors)
    assert all(line.passed for line in roundtrip.judge({OURS: ours}, subject(OURS).settings))


def test_roundtrip_sees_one_wrong_block(subject, monkeypatch):
    """One absmax of one tensor doubled: the worst tensor is no longer within the line."""
    dequantized = roundtrip.dequantized

    def broken(layer):
        weight = dequantized(layer)
        weight.view(-1)[:64] *= 2
        return weight

    monkeypatch.setattr(roundtrip, "dequantized", broken)
    line = roundtrip.judge({OURS: roundtrip.measure(subject(OURS))}, subject(OURS).settings)[-1]
    assert not line.passed


def test_nearest_is_nearest():
    """Brute force over the codebook, with a short last block and a block of zeros."""
    weight = torch.randn(5, 41)
    weight.view(-1)[64:128] = 0
    found = roundtrip.nearest(weight, "nf4", 64).flatten()
    values = torch.tensor(roundtrip.codebook4("nf4").values, dtype=torch.float64)
    for block, got in zip(weight.double().flatten().split(64), found.split(64)):
        every = (values * block.abs().max())[None, :]
        assert torch.equal((got - block).abs(), (every - block[:, None]).abs().min(dim=1).values)


def test_logits(subject):
    columns = {name: logits.measure(subject(name)) for name in (BF16, OURS, DEQUANTIZED)}
    base = columns[BF16]
    assert sum(base.kl) == 0
    assert base.agree == base.tokens
    assert sum(columns[OURS].kl) > 0
    settings = subject(OURS).settings
    summary = logits.summary(columns[OURS], base, settings)
    assert summary.perplexity.value == pytest.approx(
        math.exp(sum(columns[OURS].nll) / sum(base.tokens))
    )
    assert summary.kl.low <= summary.kl.value <= summary.kl.high
    assert logits.judge(columns, settings)[1].passed


def test_kl_by_hand():
    """Two equally likely tokens against 3 : 1: KL = log 2 - log(3) / 2, and a tie goes first."""
    base = torch.tensor([[0.0, 0.0]])
    given = torch.tensor([[math.log(3.0), 0.0]])
    count, nll, kl, agree = logits._compare(given, base, torch.tensor([1]))
    assert (count, agree) == (1, 1)
    assert nll == pytest.approx(math.log(4))
    assert kl == pytest.approx(math.log(2) - math.log(3) / 2)


def test_training(subject, monkeypatch):
    """Scores are left out: they are those of `carroll`, and take most of the time."""
    rows = fake_rows(10)
    monkeypatch.setattr(training, "all_likelihoods", lambda *_args: rows)
    columns = {name: training.measure(subject(name)) for name in (BF16, OURS)}
    settings = subject(OURS).settings
    for result in columns.values():
        assert len(result.losses) == settings.steps
        assert result.likelihoods == rows
    again = training.measure(subject(BF16))
    assert again.losses == columns[BF16].losses
    assert columns[OURS].losses != columns[BF16].losses
    lines = training.judge(columns, settings)
    assert len(lines) == 4
    for line, kind in zip(lines, ("losses", "answer_losses")):
        ours, base = (sum(getattr(columns[name], kind)) for name in (OURS, BF16))
        assert line.measured == pytest.approx(abs(ours / base - 1))


def test_losses_are_those_of_a_plain_forward(subject):
    """Every token of a padded batch, and the answers' tokens alone, one row at a time."""
    from bitsanywhere.validate.adapters import train, with_adapter
    from bitsanywhere.validate.scoring import Reader
    from bitsanywhere.validate.sorites import training_items

    reader, model = Reader(subject(BF16).tokenizer()), subject(BF16).model().float()
    items = training_items(3, seed=0)
    assert len({len(reader.prompt_ids(item)) for item in items}) > 1
    every, answers = [], []
    for item in items:
        prompt, end = reader.prompt_ids(item), reader.answer_ids(item.answer)
        ids = torch.tensor(prompt + end)
        with torch.inference_mode():
            row = model(ids[None]).logits[0, :-1].log_softmax(-1)
        losses = -row.gather(-1, ids[1:, None])[:, 0]
        every += losses.tolist()
        answers += losses[-len(end) :].tolist()
    (loss,) = train(with_adapter(model, seed=0), [reader.batch(items, "cpu")], 1e-3)
    assert loss.every == pytest.approx(sum(every) / len(every), rel=1e-4)
    assert loss.answers == pytest.approx(sum(answers) / len(answers), rel=1e-4)


def test_columns_compute_in_the_dtype_that_was_asked_for(subject):
    for column in (BF16, OURS, DEQUANTIZED):
        for dtype in ("bfloat16", "float32"):
            given = subject(column)
            settings = dataclasses.replace(given.settings, dtype=dtype)
            model = dataclasses.replace(given, settings=settings).model()
            with torch.inference_mode():
                logits = model(torch.tensor([[5, 6, 7]])).logits
            assert logits.dtype == getattr(torch, dtype)
            if column != OURS:
                weights = {layer.weight.dtype for layer in speed.linear_layers(model)}
                assert weights == {logits.dtype}


def test_carroll(subject):
    result = carroll.measure(subject(OURS))
    assert [len(row) for row in result.likelihoods] == [4] * 58
    assert len(result.answers) == len(result.keywords) == 16


def test_likelihoods_are_those_of_a_plain_forward(subject):
    """Without cache, padding or batching, one answer at a time."""
    from bitsanywhere.validate.scoring import Reader, likelihoods
    from bitsanywhere.validate.sorites import carroll as problems

    model, reader = subject(BF16).model(), Reader(subject(BF16).tokenizer())
    items = [problems(1, seed=0)[i] for i in (4, 57, 30)]
    for item, found in zip(items, likelihoods(model, reader, items), strict=True):
        prompt = reader.prompt_ids(item)
        for got, answer in zip(found, (item.answer, *item.wrong), strict=True):
            end = reader.answer_ids(answer)
            with torch.inference_mode():
                row = model(torch.tensor([prompt + end])).logits[0].float().log_softmax(-1)
            steps = range(len(prompt) - 1, len(prompt) + len(end) - 1)
            wanted = sum(float(row[i, token]) for i, token in zip(steps, end)) / len(end)
            assert got == pytest.approx(wanted, abs=0.02)


def test_written_answers_are_those_of_each_problem_alone(subject):
    from bitsanywhere.validate.scoring import Reader, write
    from bitsanywhere.validate.sorites import carroll as problems

    model = subject(BF16).model().float()
    reader = Reader(subject(BF16).tokenizer())
    items = [problems(1, seed=0)[i] for i in (4, 57)]
    alone = tuple(write(model, reader, [item], 5)[0] for item in items)
    assert write(model, reader, items, 5) == alone
    assert len(set(alone)) == 2


def test_speed(subject):
    columns = {name: speed.measure(subject(name)) for name in (BF16, OURS)}
    for result in columns.values():
        assert min(result.prefill, result.generation, result.step_seconds) > 0
        assert len(result.losses) == subject(OURS).settings.speed_steps
    (line,) = speed.judge(columns, subject(OURS).settings)
    assert line.passed


def fake_rows(right: int, of: int = 58) -> tuple[tuple[float, ...], ...]:
    return tuple((0.0 if i < right else -2.0, -1.0, -1.0, -1.0) for i in range(of))


def test_carroll_lines_can_be_missed():
    same = carroll.small_and_large({BF16: fake_rows(40), OURS: fake_rows(40)}, BF16, 1)
    assert all(line.passed for line in same)
    near = carroll.small_and_large({BF16: fake_rows(40), OURS: fake_rows(38)}, BF16, 1)
    assert all(line.passed for line in near)
    far = carroll.small_and_large(
        {BF16: fake_rows(40), OURS: fake_rows(20), PEER: fake_rows(30)}, BF16, 1
    )
    assert not any(line.passed for line in far)
    assert far[1].measured == pytest.approx(20 / 58)
    assert far[1].peer == pytest.approx(10 / 58)


def test_training_line_can_be_missed(tiny_plan):
    base = training.Result((2.0, 1.0), (0.5, 0.1), fake_rows(10))
    good = dataclasses.replace(base, losses=(2.004, 1.001))
    bad = dataclasses.replace(base, losses=(2.02, 1.0))
    wrong = dataclasses.replace(base, answer_losses=(0.5, 0.11))
    for given, passed in ((good, [True, True]), (bad, [False, True]), (wrong, [True, False])):
        lines = training.judge({BF16: base, OURS: given}, tiny_plan.settings)
        assert [line.passed for line in lines[:2]] == passed


def test_speed_lines_can_be_missed(tiny_plan):
    base = speed.Result(1.0, 100.0, 10.0, 0.1, (1.0,), 1000, 500, 1, 1)
    ours = dataclasses.replace(base, linear_bytes=300, generation=8.0)
    peer = dataclasses.replace(base, linear_bytes=258)
    lines = speed.judge({BF16: base, OURS: ours, PEER: peer}, tiny_plan.settings)
    assert [line.passed for line in lines] == [False, False, True, True]
    assert lines[1].measured == pytest.approx(0.25)
