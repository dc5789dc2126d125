"""Forms in English. Every sentence says of one sort of thing that a class is empty.

A class of two positive literals reads "No striped kites are heavy."; one with a negated literal
reads as a positive statement about the rest, "All striped kites are heavy." for striped and not
heavy. Predicates are never negated, since "all kites are not heavy" has two readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitsanywhere.validate.sorites.logic import negate

_NO = ("No {x} are {y}.", "None of the {x} are {y}.", "There are no {x} that are {y}.")
_ALL = ("All {x} are {y}.", "Every one of the {x} is {y}.", "Only {Y} are {a}.")


@dataclass(frozen=True)
class Vocabulary:
    """Sorts of things (plural nouns) and what can be said of any of them, apart by spaces."""

    sorts: str
    properties: str


HELD_OUT = Vocabulary(
    sorts="kites lanterns ferries puppets suitcases bridges clocks statues",
    properties="""striped heavy borrowed waterproof famous crooked expensive foldable green numbered
        fragile imported magnetic dusty hollow painted noisy antique portable wooden round
        labelled shiny insured repaired lopsided visible empty oily sealed""",
)
TRAINING = Vocabulary(
    sorts="baskets gates violins tents wheelbarrows ladders mirrors sledges",
    properties="""purple cheap varnished broken tall rented patched slippery locked rusty elegant
        inflatable warm floating crowded polished stolen square transparent silent new
        electric narrow mended spotted tidy warped fireproof woven hidden""",
)


@dataclass(frozen=True)
class Words:
    """The words of one problem: a sort of thing, and the property that each term stands for."""

    sort: str
    properties: Mapping[str, str]

    def _things(self, literal: str) -> str:
        name = self.properties[literal.lower()]
        return f"{name} {self.sort}" if literal.islower() else f"{self.sort} that are not {name}"

    def say(self, empty: str, style: int = 0) -> str:
        """The sentence that calls the class of two literals empty.

        Args:
            empty: the class; where its second literal is negated it is the predicate, and the
                order decides what is said of what.
            style: 0, 1 or 2: which of three ways to put it; 0 is how answers are given.
        """
        first, second = empty if empty[1].isupper() or empty[0].islower() else empty[::-1]
        things = self._things(first)
        if second.islower():
            return _NO[style].format(x=things, y=self.properties[second])
        predicate = self.properties[second.lower()]
        if style == 2 and first.isupper():
            style = 0
        return _ALL[style].format(
            x=things, y=predicate, Y=self._things(negate(second)), a=self.properties[first.lower()]
        )
