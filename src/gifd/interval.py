"""Means with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the half width of its 95 % t-interval; None for a single value."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return float(numbers.mean()), None
    half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(numbers)
    return float(numbers.mean()), float(half)


def written(values: Sequence[float]) -> str:
    """`mean ± half`, with digits by the size of the mean."""
    mean, half = mean_interval(values)
    digits = 1 if abs(mean) >= 100 else 2 if abs(mean) >= 2 else 4 if abs(mean) < 0.1 else 3
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ± {half:.{digits}f}"
