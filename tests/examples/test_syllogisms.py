"""The generated questions: sound logic, the same for the same seed, held-out kept apart."""

import itertools

import pytest
from qlora.syllogisms import (
    FORMS,
    Shape,
    Statement,
    consistent,
    entails,
    generate,
    is_right,
    parse,
    say,
    shapes,
    words,
)


def holds(statement: Statement, world: tuple[frozenset[int], ...]) -> bool:
    """The statement in a world given as one set of objects per class: a second implementation."""
    x, y = world[statement.subject], world[statement.predicate]
    return {"A": x <= y, "E": not x & y, "I": bool(x & y), "O": not x <= y}[statement.form]


def worlds(classes: int, objects: int) -> list[tuple[frozenset[int], ...]]:
    subsets = [
        frozenset(s) for r in range(objects + 1) for s in itertools.combinations(range(objects), r)
    ]
    return list(itertools.product(subsets, repeat=classes))


WORLDS = {3: worlds(3, 3), 4: worlds(4, 2)}


def counterexample(premises: tuple[Statement, ...], conclusion: Statement, n: int) -> bool:
    return any(
        all(holds(p, world) for p in premises) and not holds(conclusion, world)
        for world in WORLDS[n]
    )


def figures(*, inhabited: bool) -> int:
    """How many of the 256 classical moods (four figures) are valid; class 0 is S, 1 M, 2 P."""
    valid = 0
    for major, minor in itertools.product([(1, 2), (2, 1)], [(0, 1), (1, 0)]):
        for a, b, c in itertools.product(FORMS, repeat=3):
            premises = (Statement(a, *major), Statement(b, *minor))
            valid += entails(premises, Statement(c, 0, 2), 3, inhabited=inhabited)
    return valid


def test_counts_of_valid_moods_are_the_textbook_ones():
    assert figures(inhabited=False) == 15
    assert figures(inhabited=True) == 24


@pytest.mark.parametrize(("premises", "count"), [(2, 30), (3, 56)])
def test_every_shape_is_sound_and_every_wrong_answer_has_a_counterexample(premises, count):
    found = shapes(premises)
    assert len(found) == count
    for shape in found:
        n = shape.classes
        assert consistent(shape.premises, n)
        assert entails(shape.premises, shape.conclusion, n)
        assert not counterexample(shape.premises, shape.conclusion, n)
        assert len(shape.wrong) >= 3
        for wrong in shape.wrong:
            assert {wrong.subject, wrong.predicate} == {0, n - 1}
            assert counterexample(shape.premises, wrong, n)
        for i in range(premises):
            fewer = shape.premises[:i] + shape.premises[i + 1 :]
            assert counterexample(fewer, shape.conclusion, n)


def test_entails_agrees_with_a_search_for_counterexamples():
    ends = [Statement(f, *p) for f in FORMS for p in ((0, 2), (2, 0))]
    first = [Statement(f, *p) for f in FORMS for p in ((0, 1), (1, 0))]
    second = [Statement(f, *p) for f in FORMS for p in ((1, 2), (2, 1))]
    for chain in itertools.product(first, second):
        for end in ends:
            assert entails(chain, end, 3) == (not counterexample(chain, end, 3))


def test_items_say_what_their_shape_means():
    for item in generate(200, seed=3) + generate(50, seed=3, held_out=True):
        assert parse(item.answer, item.classes) == item.shape.conclusion
        assert is_right(item.answer, item)
        assert len(item.wrong) == len(set(item.wrong)) == 3
        for wrong in item.wrong:
            assert parse(wrong, item.classes) in item.shape.wrong
            assert not is_right(wrong, item)
        assert len(item.question.splitlines()) == len(item.shape.premises)
        mentioned = [phrase for phrase in item.classes if phrase in item.question.lower()]
        assert mentioned == list(item.classes)


def test_an_equivalent_answer_counts_and_a_repeated_premise_does_not():
    premises = (Statement("A", 0, 1), Statement("E", 1, 2))
    shape = Shape(premises, Statement("E", 0, 2), (Statement("A", 0, 2),))
    classes = ("red hens", "tall hats", "old maps")
    item = generate(1, seed=0)[0].__class__("", "No red hens are old maps.", (), shape, classes)
    assert is_right("No old maps are red hens", item)
    assert is_right("  no  Red hens are old maps. ", item)
    assert not is_right("All red hens are tall hats.", item)
    assert not is_right("Some red hens are not old maps.", item)
    assert not is_right("Red hens?", item)
    assert not is_right("", item)


def test_same_seed_same_items_other_seed_other_items():
    assert generate(64, seed=5) == generate(64, seed=5)
    assert generate(64, seed=5) != generate(64, seed=6)
    assert generate(64, seed=5)[:10] == generate(10, seed=5)


def test_held_out_items_share_no_word_and_no_question_with_training():
    for mine, theirs in zip(words(held_out=True), words(held_out=False)):
        assert not set(mine) & set(theirs)
        assert len(set(theirs)) == len(theirs)
    train = {item.question for item in generate(800, seed=0)}
    held_out = {item.question for item in generate(64, seed=0, held_out=True)}
    assert len(train) == 800
    assert len(held_out) == 64
    assert not train & held_out


def test_the_four_forms_of_conclusion_are_about_equally_frequent():
    items = generate(800, seed=1)
    for form in FORMS:
        share = sum(item.shape.conclusion.form == form for item in items) / len(items)
        assert 0.15 < share < 0.35


def test_plain_wording_reads_back():
    classes = ("red hens", "tall hats")
    for form in FORMS:
        statement = Statement(form, 0, 1)
        assert parse(say(statement, classes), classes) == statement
