"""What universal premises entail.

A class is a pair of literals, and a premise or a conclusion says that it is empty: "ac" that no a
is c, "aC" that no a is other than c, so that every a is c. With n terms a thing is of one of 2**n
kinds (with or without each property); premises rule kinds out. All of them being universal, they
entail that a class is empty if and only if every kind in it is ruled out: otherwise a world with
one thing of each kind that is left satisfies the premises, and the class has a member there.

A set of kinds is an integer whose bit k stands for kind k, so that 11 terms (the most in Carroll's
examples) take integers of 2048 bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Form:
    """Premises and the conclusion that they entail; each is a class of two literals.

    Attributes:
        number: Carroll's; 0 for a form of our own.
    """

    number: int
    premises: tuple[str, ...]
    conclusion: str

    @property
    def terms(self) -> tuple[str, ...]:
        """The letters in use, in alphabetical order."""
        return tuple(sorted({letter.lower() for premise in self.premises for letter in premise}))


@cache
def forms() -> tuple[Form, ...]:
    """The 58 forms, by number."""
    text = resources.files(__package__ or "").joinpath("forms.json").read_text("utf-8")
    return tuple(
        Form(row["n"], tuple(row["premises"]), row["conclusion"])
        for row in json.loads(text)["forms"]
    )


def entails(premises: Sequence[str], conclusion: str) -> bool:
    """Whether the premises leave no kind of thing in the class that the conclusion calls empty."""
    terms = sorted({letter.lower() for literals in (*premises, conclusion) for letter in literals})
    left = _everything(len(terms))
    for premise in premises:
        left &= ~_members(premise, terms)
    return not left & _members(conclusion, terms)


def negate(literal: str) -> str:
    """The other literal of the same term."""
    return literal.swapcase()


def _everything(count: int) -> int:
    return (1 << (1 << count)) - 1


def _members(literals: str, terms: Sequence[str]) -> int:
    """The kinds that have every one of the literals."""
    found = _everything(len(terms))
    for literal in literals:
        having = _having(terms.index(literal.lower()), len(terms))
        found &= having if literal.islower() else ~having
    return found


@cache
def _having(term: int, count: int) -> int:
    """The kinds with property ``term``: those whose number has that bit set."""
    return sum(1 << kind for kind in range(1 << count) if kind >> term & 1)
