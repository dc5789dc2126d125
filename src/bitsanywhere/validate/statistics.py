"""Means with their uncertainty: standard errors, bootstrap intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def map(self, increasing: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimate."""
        return Interval(increasing(self.value), increasing(self.low), increasing(self.high))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, first minus second, and its standard error."""

    mean: float
    error: float


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error, ``sqrt(sum((x - mean)**2) / (n - 1) / n)``.

    The error is NaN for a single value.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (n - 1) / n)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean difference of two scores of the same items, item by item."""
    return Difference(*mean_and_error([a - b for a, b in zip(first, second, strict=True)]))


def ratio_interval(
    sums: Sequence[float], counts: Sequence[float], *, resamples: int, seed: int
) -> Interval:
    """``sum(sums) / sum(counts)`` with a percentile bootstrap over blocks.

    Args:
        sums: what is averaged, summed within each block; blocks are drawn with replacement,
            since tokens within one depend on each other.
        counts: members of each block.
        resamples: draws of a whole set of blocks.
        seed: of the draws.
    """
    numerators, denominators = np.asarray(sums, float), np.asarray(counts, float)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    ratios = numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(float(numerators.sum() / denominators.sum()), float(low), float(high))
