"""How sure a mean is: bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron 1979), over 2,000 resamples.

    Args:
        values: one a prompt (or sentence), independent of each other.
        level: the share of resamples within.
        seed: of the resampling.

    >>> interval([0.0, 1.0] * 200)
    (0.45, 0.5475)
    """
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.array([data[generator.integers(0, len(data), len(data))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
