"""Problems made of forms: premises, the right conclusion, and three that do not follow."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from bitsanywhere.validate.sorites.logic import Form, entails, forms, negate
from bitsanywhere.validate.sorites.wording import HELD_OUT, TRAINING, Vocabulary, Words

STYLES = 3
SMALL = 16
LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        premises: one sentence each, shuffled.
        answer: the conclusion.
        wrong: the three other statements about presence and absence of the same two properties;
            none is entailed.
        form: what the sentences mean: premises in the order of the sentences.
        wrong_classes: the classes that the wrong answers call empty.
        keywords: the two properties that the conclusion is about.
        others: the properties that it must do without.
    """

    premises: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]
    form: Form
    wrong_classes: tuple[str, ...]
    keywords: tuple[str, str]
    others: tuple[str, ...]

    @property
    def question(self) -> str:
        """The premises, one a line."""
        return "\n".join(self.premises)

    def keyword_score(self, text: str) -> float:
        """How well a free answer names what it must: |named and wanted| / |named or wanted|.

        Named are the properties of the problem that occur in ``text`` as words; wanted are the
        two of the conclusion. 1.0 means both of them and no other.
        """
        words = set(re.findall(r"[a-z]+", text.lower()))
        named = words & {*self.keywords, *self.others}
        wanted = set(self.keywords)
        return len(named & wanted) / len(named | wanted)


def carroll(renderings: int, seed: int) -> list[Item]:
    """Carroll-58: every one of his 58 forms, worded ``renderings`` times; form by form."""
    return [
        word(form, HELD_OUT, random.Random(f"carroll/{seed}/{form.number}/{rendering}"))
        for form in forms()
        for rendering in range(renderings)
    ]


def carroll16(renderings: int) -> list[int]:
    """Carroll-16: where in `carroll` the first wordings of 16 forms stand.

    The 16 are spread evenly over the 58, which ascend from three premises to ten.
    """
    last = len(forms()) - 1
    return [renderings * round(i * last / (SMALL - 1)) for i in range(SMALL)]


def training_items(count: int, seed: int) -> list[Item]:
    """Sorites of three to five premises of random signs, worded with other words than Carroll's."""
    rng = random.Random(f"training/{seed}")
    return [word(_chain(rng), TRAINING, rng) for _ in range(count)]


def _chain(rng: random.Random) -> Form:
    """A chain a-b, b-c, ...: each middle term with both its signs, so that it is eliminated."""
    length = rng.randint(3, 5)
    signs = [rng.choice((str.lower, str.upper)) for _ in range(length + 1)]
    literals = [sign(letter) for sign, letter in zip(signs, LETTERS)]
    links = [literals[0] + literals[1]]
    links += [negate(literals[i]) + literals[i + 1] for i in range(1, length)]
    return Form(0, tuple(links), literals[0] + literals[-1])


def word(form: Form, vocabulary: Vocabulary, rng: random.Random) -> Item:
    """The form in English.

    Raises:
        AssertionError: the form is unsound, or a distractor is entailed; for the forms here
            neither happens.
    """
    chosen = rng.sample(vocabulary.properties.split(), len(form.terms))
    words = Words(rng.choice(vocabulary.sorts.split()), dict(zip(form.terms, chosen)))
    premises = [_turned(premise, rng) for premise in form.premises]
    rng.shuffle(premises)
    first, last = form.conclusion
    wrong = (first + negate(last), negate(first) + last, negate(first) + negate(last))
    assert entails(premises, form.conclusion)
    assert not any(entails(premises, each) for each in wrong)
    keywords = (words.properties[first.lower()], words.properties[last.lower()])
    return Item(
        premises=tuple(words.say(premise, rng.randrange(STYLES)) for premise in premises),
        answer=words.say(form.conclusion),
        wrong=tuple(words.say(each) for each in wrong),
        form=Form(form.number, tuple(premises), form.conclusion),
        wrong_classes=wrong,
        keywords=keywords,
        others=tuple(name for name in chosen if name not in keywords),
    )


def _turned(premise: str, rng: random.Random) -> str:
    return premise if rng.random() < 0.5 else premise[::-1]
