"""Every problem is sound, by a check that shares no code with the one that made it."""

from __future__ import annotations

import itertools

import pytest

from bitsanywhere.validate.sorites import carroll, carroll16, training_items
from bitsanywhere.validate.sorites.logic import Form, entails, forms
from bitsanywhere.validate.sorites.wording import HELD_OUT, TRAINING

ITEMS = [*carroll(3, seed=0), *training_items(60, seed=0)]


def has_member(thing: dict[str, bool], literals: str) -> bool:
    return all(thing[letter.lower()] == letter.islower() for letter in literals)


def brute_force(premises, conclusion: str) -> bool:
    """Whether no kind of thing that the premises allow is in the conclusion's class."""
    letters = sorted(set("".join([*premises, conclusion]).lower()))
    for values in itertools.product((False, True), repeat=len(letters)):
        thing = dict(zip(letters, values))
        if any(has_member(thing, premise) for premise in premises):
            continue
        if has_member(thing, conclusion):
            return False
    return True


def meaning(sentence: str, sort: str, properties: dict[str, str]) -> frozenset[str]:
    """The class that an English sentence calls empty, read without the code that wrote it."""

    def literal(phrase: str) -> str:
        negated = " not " in f" {phrase} "
        (found,) = [letter for letter, name in properties.items() if name in phrase.split()]
        return found.upper() if negated else found

    text = sentence.rstrip(".").replace("There are no ", "No ").replace("None of the ", "No ")
    text = text.replace("Every one of the ", "All ").replace(" is ", " are ")
    quantifier, rest = text.split(" ", 1)
    if (
        f"{sort} that are " in rest
        and quantifier == "No"
        and " are " not in rest.split(f"{sort} that are ", 1)[1].replace("are not", "")
    ):
        subject, predicate = rest.split(f" {sort} that are ", 1)
    else:
        subject, predicate = rest.rsplit(" are ", 1)
    first, second = literal(subject), literal(predicate)
    if quantifier == "No":
        return frozenset((first, second))
    if quantifier == "All":
        return frozenset((first, second.swapcase()))
    assert quantifier == "Only"
    return frozenset((second, first.swapcase()))


def test_there_are_58_forms_with_up_to_11_terms():
    assert len(forms()) == 58
    assert max(len(form.terms) for form in forms()) == 11
    assert [form.number for form in forms()] == sorted(form.number for form in forms())


@pytest.mark.parametrize("form", forms(), ids=lambda form: str(form.number))
def test_forms_are_entailed_and_no_premise_is_redundant(form: Form):
    assert brute_force(form.premises, form.conclusion)
    for i in range(len(form.premises)):
        assert not brute_force(form.premises[:i] + form.premises[i + 1 :], form.conclusion)


def test_both_deciders_agree_on_every_class_of_two_literals():
    for form in forms()[::6]:
        literals = [*form.terms, *map(str.upper, form.terms)]
        for first, second in itertools.combinations(literals, 2):
            assert entails(form.premises, first + second) == brute_force(
                form.premises, first + second
            )


@pytest.mark.parametrize("index", range(0, len(ITEMS), 7))
def test_answers_follow_and_distractors_do_not(index: int):
    item = ITEMS[index]
    assert brute_force(item.form.premises, item.form.conclusion)
    assert len(item.wrong) == len(set(item.wrong) - {item.answer}) == 3
    for wrong in item.wrong_classes:
        assert not brute_force(item.form.premises, wrong)


def test_sentences_say_what_the_forms_mean():
    for item in ITEMS:
        names = (*item.keywords, *item.others)
        sort = _sort(item.answer)
        letters = _letters(item, sort, names)
        for sentence, premise in zip(item.premises, item.form.premises):
            assert meaning(sentence, sort, letters) == frozenset(premise), sentence
        for sentence, wrong in zip(item.wrong, item.wrong_classes):
            assert meaning(sentence, sort, letters) == frozenset(wrong), sentence
        assert meaning(item.answer, sort, letters) == frozenset(item.form.conclusion)


def _sort(sentence: str) -> str:
    (found,) = {
        name for name in f"{HELD_OUT.sorts} {TRAINING.sorts}".split() if f" {name} " in sentence
    }
    return found


def _letters(item, sort: str, names) -> dict[str, str]:
    """The letter of each property: the assignment under which the premises fit the form."""
    terms = item.form.terms
    candidates = {letter: set(names) for letter in terms}
    for sentence, premise in zip(item.premises, item.form.premises):
        there = {name for name in names if name in sentence.rstrip(".").split()}
        for letter in premise.lower():
            candidates[letter] &= there
    first, last = item.form.conclusion.lower()
    candidates[first] &= {item.keywords[0]}
    candidates[last] &= {item.keywords[1]}
    assert all(len(found) == 1 for found in candidates.values()), candidates
    return {letter: next(iter(found)) for letter, found in candidates.items()}


def test_seeds_give_the_same_or_other_words():
    assert carroll(2, seed=5) == carroll(2, seed=5)
    assert carroll(2, seed=5) != carroll(2, seed=6)
    again = carroll(2, seed=5)
    assert again[0].form.number == again[1].form.number
    assert again[0].question != again[1].question


def test_training_shares_no_word_with_the_evaluation():
    assert not set(HELD_OUT.properties.split()) & set(TRAINING.properties.split())
    assert not set(HELD_OUT.sorts.split()) & set(TRAINING.sorts.split())


def test_carroll16_are_16_different_forms_from_first_to_last():
    items = carroll(3, seed=0)
    numbers = [items[i].form.number for i in carroll16(3)]
    assert len(set(numbers)) == 16
    assert (numbers[0], numbers[-1]) == (1, 60)
    assert all(i % 3 == 0 for i in carroll16(3))


def test_keyword_score_counts_words_not_parts_of_words():
    item = carroll(1, seed=0)[0]
    first, second = item.keywords
    assert item.keyword_score(f"No {first} things are {second}.") == 1
    assert item.keyword_score(f"All things are {first.upper()}") == 0.5
    assert item.keyword_score(f"{first} {second} {item.others[0]}") == pytest.approx(2 / 3)
    assert item.keyword_score(f"un{first}ly") == 0
    assert item.keyword_score("") == 0
