"""The interval of a mean, by which differences over seeds are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def interval(differences: Sequence[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of paired differences; None for fewer than two.

    >>> [round(each, 4) for each in interval([1.0, 2.0, 3.0])]
    [-0.4841, 4.4841]
    """
    from scipy import stats

    count = len(differences)
    if count < 2:
        return None, None
    mean, error = float(np.mean(differences)), float(stats.sem(differences))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return mean - half, mean + half
