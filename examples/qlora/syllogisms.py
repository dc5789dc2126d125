"""Syllogisms and short sorites in the manner of Lewis Carroll, each one checked by logic.

A statement is one of four forms over two classes: "all x are y", "no x are y", "some x are y",
"some x are not y" (Aristotle's A, E, I, O). Premises chain the classes: 0-1, 1-2 (a syllogism)
or 0-1, 1-2, 2-3 (a sorites); the conclusion joins the two ends.

Whether premises entail a conclusion is decided by trying every model. With n classes an object
is of one of 2**n kinds (in or out of each class), and only which kinds occur matters for these
statements, so the 2**(2**n) sets of kinds are all the models there are: 256 for three classes,
65,536 for four.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Form = Literal["A", "E", "I", "O"]
FORMS: tuple[Form, ...] = ("A", "E", "I", "O")

_TEMPLATES: dict[Form, tuple[str, ...]] = {
    "A": ("All {x} are {y}.", "Every one of the {x} is among the {y}.", "None but {y} are {x}."),
    "E": ("No {x} are {y}.", "None of the {x} are {y}.", "{X} are never {y}."),
    "I": ("Some {x} are {y}.", "At least a few {x} are {y}.", "There are {x} that are {y}."),
    "O": ("Some {x} are not {y}.", "Not all {x} are {y}.", "There are {x} that are not {y}."),
}

_TRAIN_ADJECTIVES = """patient sleepy cheerful left-handed forgetful polite travelling moonlit
retired solemn freckled musical punctual barefoot"""
_TRAIN_NOUNS = """walruses magistrates gardeners umbrellas lanterns bakers tortoises pianists
kettles postmen clowns weathercocks librarians geese"""
_HELD_OUT_ADJECTIVES = "stubborn elegant whistling near-sighted generous seafaring dusty nervous"
_HELD_OUT_NOUNS = "badgers teapots acrobats lighthouses tailors owls ferrymen bicycles"


@dataclass(frozen=True)
class Statement:
    """One form over two classes, given by number."""

    form: Form
    subject: int
    predicate: int


@dataclass(frozen=True)
class Shape:
    """A way to argue: premises, the conclusion they entail, and conclusions they do not."""

    premises: tuple[Statement, ...]
    conclusion: Statement
    wrong: tuple[Statement, ...]

    @property
    def classes(self) -> int:
        return len(self.premises) + 1


@dataclass(frozen=True)
class Item:
    """One question with its answer, three wrong answers, and the logic behind them.

    `classes[i]` is the wording of class i in `shape`.
    """

    question: str
    answer: str
    wrong: tuple[str, ...]
    shape: Shape
    classes: tuple[str, ...]


@cache
def _models(n: int) -> np.ndarray:
    return np.arange(1 << (1 << n), dtype=np.uint32)


@cache
def _kinds(n: int, inside: int, other: int, in_other: bool) -> int:
    kinds = (k for k in range(1 << n) if k >> inside & 1 and bool(k >> other & 1) == in_other)
    return sum(1 << kind for kind in kinds)


@cache
def truth(statement: Statement, n: int) -> np.ndarray:
    """bool[2**(2**n)]: in which models over `n` classes the statement holds."""
    with_predicate = statement.form in "EI"
    mask = _kinds(n, statement.subject, statement.predicate, with_predicate)
    occurs = (_models(n) & np.uint32(mask)) != 0
    return occurs if statement.form in "IO" else ~occurs


def entails(
    premises: tuple[Statement, ...], conclusion: Statement, n: int, *, inhabited: bool = False
) -> bool:
    """Whether the conclusion holds in every model of the premises.

    With `inhabited`, only in the models where every class has a member (Aristotle's reading, in
    which "all x are y" promises that there are x).
    """
    return bool(truth(conclusion, n)[_where(premises, n, inhabited)].all())


def consistent(premises: tuple[Statement, ...], n: int) -> bool:
    """Whether some model with a member in every class satisfies the premises."""
    return bool(_where(premises, n, inhabited=True).any())


def _where(premises: tuple[Statement, ...], n: int, inhabited: bool) -> np.ndarray:
    held = np.ones(1 << (1 << n), dtype=bool)
    for premise in premises:
        held &= truth(premise, n)
    if inhabited:
        for i in range(n):
            kinds = sum(1 << kind for kind in range(1 << n) if kind >> i & 1)
            held &= (_models(n) & np.uint32(kinds)) != 0
    return held


def _between(a: int, b: int) -> tuple[Statement, ...]:
    pairs = ((a, b), (b, a))
    return tuple(Statement(form, x, y) for form in FORMS for x, y in pairs)


@cache
def shapes(premises: int) -> tuple[Shape, ...]:
    """Every sound shape with that many premises (2 or 3), checked over all models.

    Kept are consistent premises none of which is redundant, whose conclusion holds even if
    classes may be empty. A wrong conclusion is one that does not follow even if none is empty.
    """
    n = premises + 1
    links = [_between(i, i + 1) for i in range(premises)]
    return tuple(s for chain in itertools.product(*links) for s in _sound(chain, n))


def _sound(chain: tuple[Statement, ...], n: int) -> Iterator[Shape]:
    if not consistent(chain, n):
        return
    ends = _between(0, n - 1)
    wrong = tuple(s for s in ends if not entails(chain, s, n, inhabited=True))
    for conclusion in ends:
        needed = all(
            not entails(chain[:i] + chain[i + 1 :], conclusion, n) for i in range(len(chain))
        )
        if needed and entails(chain, conclusion, n):
            yield Shape(chain, conclusion, wrong)


def say(statement: Statement, classes: tuple[str, ...], template: int = 0) -> str:
    """The statement in English; template 0 is the plain wording that answers use."""
    x, y = classes[statement.subject], classes[statement.predicate]
    return _TEMPLATES[statement.form][template].format(x=x, y=y, X=x.capitalize())


def parse(sentence: str, classes: tuple[str, ...]) -> Statement | None:
    """The statement that a sentence in plain wording makes about two of the classes, or None."""
    wanted = " ".join(sentence.split()).rstrip(".").lower()
    for a, b in itertools.permutations(range(len(classes)), 2):
        for form in FORMS:
            statement = Statement(form, a, b)
            if say(statement, classes).rstrip(".").lower() == wanted:
                return statement
    return None


def is_right(sentence: str, item: Item) -> bool:
    """Whether a sentence joins the two ends of the argument and follows from its premises."""
    n = item.shape.classes
    statement = parse(sentence, item.classes)
    if statement is None or {statement.subject, statement.predicate} != {0, n - 1}:
        return False
    return entails(item.shape.premises, statement, n)


def words(*, held_out: bool) -> tuple[list[str], list[str]]:
    """The adjectives and the nouns that items are worded with."""
    if held_out:
        return _HELD_OUT_ADJECTIVES.split(), _HELD_OUT_NOUNS.split()
    return _TRAIN_ADJECTIVES.split(), _TRAIN_NOUNS.split()


def generate(count: int, *, seed: int, held_out: bool = False, sorites: float = 0.25) -> list[Item]:
    """`count` different items; the same seed gives the same items.

    Held-out items are worded with other adjectives and nouns than all the rest. `sorites` is the
    share of items with three premises.
    """
    rng = random.Random(f"{seed}/{held_out}")
    adjectives, nouns = words(held_out=held_out)
    items: dict[str, Item] = {}
    while len(items) < count:
        shape = rng.choice(_balanced(3 if rng.random() < sorites else 2))
        phrases = zip(rng.sample(adjectives, shape.classes), rng.sample(nouns, shape.classes))
        item = _word(shape, tuple(f"{a} {n}" for a, n in phrases), rng)
        items[item.question] = item
    return list(items.values())


@cache
def _balanced(premises: int) -> tuple[Shape, ...]:
    """The shapes, repeated so that the four forms of conclusion are about equally frequent."""
    found = {form: [s for s in shapes(premises) if s.conclusion.form == form] for form in FORMS}
    most = max(map(len, found.values()))
    return tuple(s for group in found.values() for s in group * round(most / len(group)))


def _word(shape: Shape, classes: tuple[str, ...], rng: random.Random) -> Item:
    premises = [say(p, classes, rng.randrange(3)) for p in shape.premises]
    rng.shuffle(premises)
    question = "\n".join(premises)
    wrong = tuple(say(s, classes) for s in rng.sample(shape.wrong, 3))
    return Item(question, say(shape.conclusion, classes), wrong, shape, classes)
