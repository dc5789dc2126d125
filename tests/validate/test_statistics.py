"""Means, errors and intervals against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from bitsanywhere.validate.statistics import Interval, mean_and_error, paired, ratio_interval


def test_mean_and_error():
    # squares about the mean 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / 4 / 5 = 0.5
    mean, error = mean_and_error([1, 2, 3, 4, 5])
    assert mean == 3
    assert error == pytest.approx(math.sqrt(0.5))


def test_a_single_value_has_no_error():
    mean, error = mean_and_error([7.0])
    assert mean == 7
    assert math.isnan(error)


def test_paired_differences_are_taken_item_by_item():
    # differences 1, 0, 0, -1, 1: mean 0.2, squares .64 + .04 + .04 + 1.44 + .64 = 2.8
    difference = paired([1, 1, 0, 0, 1], [0, 1, 0, 1, 0])
    assert difference.mean == pytest.approx(0.2)
    assert difference.error == pytest.approx(math.sqrt(2.8 / 4 / 5))


def test_pairs_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired([1, 0], [1])


def test_equal_scores_have_no_uncertainty():
    difference = paired([1, 0, 1], [1, 0, 1])
    assert (difference.mean, difference.error) == (0, 0)


def test_ratio_weighs_blocks_by_their_counts():
    interval = ratio_interval([2.0, 9.0], [1, 3], resamples=400, seed=0)
    assert interval.value == pytest.approx(11 / 4)
    # the only resamples are (first, first), both, (second, second): 2, 11 / 4, 3
    assert (interval.low, interval.high) == (2, 3)


def test_bootstrap_covers_about_95_percent():
    """Intervals of the mean of 60 normal values hold the true mean about 19 times in 20."""
    import numpy as np

    draws = np.random.default_rng(1).normal(size=(400, 60))
    held = 0
    for row in draws:
        interval = ratio_interval(row, [1] * 60, resamples=300, seed=2)
        held += interval.low <= 0 <= interval.high
    assert 0.90 <= held / 400 <= 0.98


def test_the_seed_decides_the_interval():
    values = [1.0, 5.0, 2.0, 8.0, 3.0, 3.5, 9.0]
    same = [ratio_interval(values, [1] * 7, resamples=99, seed=4) for _ in range(2)]
    other = ratio_interval(values, [1] * 7, resamples=99, seed=5)
    assert same[0] == same[1]
    assert other != same[0]
    assert other.value == same[0].value


def test_map_keeps_order():
    assert Interval(0.0, -1.0, 1.0).map(math.exp) == Interval(1.0, math.exp(-1), math.e)
