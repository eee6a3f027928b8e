"""ITI-c: a shift along the direction of a linear classifier (Li et al. 2023, arXiv 2306.03341)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch

from lineas.checks import DEVIATIONS, check_settings, within
from lineas.errors import needing
from lineas.intervention.maps import AffineMap
from lineas.learning.method import ATTENTION_OUT, Fit, Task, fit_untouched
from lineas.steering.exclusive import exclusively


@dataclass(frozen=True)
class ITIc:
    """Inference-time intervention with a classifier's direction: `w = 1, b = alpha sigma theta` per site.

    A logistic regression separates source and target. theta is the unit vector orthogonal to its hyperplane, towards
    the target, and sigma is the standard deviation of all activations along theta (Li et al. 2023, arXiv 2306.03341,
    section 3; on whole attention outputs as in arXiv 2410.23054). The activations are those of the untouched network.

    Args:
        alpha: number of deviations to move at strength 1; 0.5 in the comparison of arXiv 2503.10679.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    alpha: float = field(default=0.5, metadata=within(DEVIATIONS))

    def __post_init__(self) -> None:
        check_settings(self)

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        return fit_untouched(task, partial(probe_map, alpha=self.alpha))


def probe_map(source: torch.Tensor, target: torch.Tensor, alpha: float) -> AffineMap:
    """Return the shift along the direction in which a logistic regression separates `[n, d]` and `[m, d]`."""
    with needing("ITI-c needs scikit-learn", "evaluate"):
        from sklearn.linear_model import LogisticRegression
    samples = torch.cat([source, target]).double().cpu()
    labels = [0] * len(source) + [1] * len(target)
    probe = LogisticRegression(max_iter=1000).fit(samples.numpy(), labels)
    direction = torch.from_numpy(probe.coef_[0])
    direction = direction / direction.norm().clamp_min(torch.finfo(torch.float64).tiny)
    shift = (alpha * (samples @ direction).std(correction=0) * direction).float().to(source.device)
    return AffineMap(torch.ones_like(shift), shift)
