"""Bootstrap intervals of a mean and of the ratio of two means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron 1979), over 2,000 resamples.

    Args:
        values: one independent number for each prompt or sentence.
        level: share of resampled means within the interval; default: 0.95.
        seed: seed of the resampling; default: 0.

    >>> interval([0.0, 1.0] * 200)
    (0.45, 0.5475)
    """
    means = _resampled_means(np.asarray([values], dtype=np.float64), seed)[0]
    return _middle(means, level)


def ratio_interval(
    after: Sequence[float], before: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the ratio of two means over the same prompts (Efron 1979).

    Each resample has the same prompts in both means, so differences between prompts cancel.

    Args:
        after: one number for each prompt, for the numerator.
        before: one number for each prompt, for the denominator; resamples with mean 0 are left out.
        level: share of resampled ratios within the interval; default: 0.95.
        seed: seed of the resampling; default: 0.

    >>> ratio_interval([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    (2.0, 2.0)
    """
    means = _resampled_means(np.asarray([after, before], dtype=np.float64), seed)
    means = means[:, means[1] != 0]
    return _middle(means[0] / means[1], level) if means.size else (0.0, float("inf"))


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the means of values `[k, n]` over resampled columns, `[k, RESAMPLES]`."""
    generator, n = np.random.default_rng(seed), values.shape[1]
    return np.stack([values.take(generator.integers(0, n, n), axis=1).mean(1) for _ in range(RESAMPLES)], 1)


def _middle(numbers: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
