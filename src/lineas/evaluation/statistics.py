"""Bootstrap intervals of a mean and of the ratio of two means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean of independent numbers (Efron 1979).

    >>> interval([0.0, 1.0] * 200)
    (0.45, 0.5475)
    """
    return _middle(_resampled_means([values])[0])


def ratio_interval(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the ratio of two means over the same prompts (Efron 1979).

    Each resample has the same prompts in both means, so differences between prompts cancel. Resamples in which the mean
    of `before` is 0 are left out.

    >>> ratio_interval([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    (2.0, 2.0)
    """
    means = _resampled_means([after, before])
    means = means[:, means[1] != 0]
    return _middle(means[0] / means[1]) if means.size else (0.0, float("inf"))


def _resampled_means(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the means of k rows of n numbers over resampled columns, `[k, RESAMPLES]`."""
    values, generator = np.asarray(rows, dtype=np.float64), np.random.default_rng(0)
    n = values.shape[1]
    return np.stack([values.take(generator.integers(0, n, n), axis=1).mean(1) for _ in range(RESAMPLES)], 1)


def _middle(numbers: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(numbers, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)
