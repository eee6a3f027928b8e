"""AurA: neurons dampened by how well they detect the source (Suau et al. 2024, arXiv 2407.12824)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.intervention.maps import AffineMap
from lineas.learning.capture import stacked
from lineas.learning.method import MLP_LINEARS, Fit, Task
from lineas.steering.exclusive import exclusively


@dataclass(frozen=True)
class AurA:
    """AUROC adaptation: `w = 1 - 2 (AUROC - 0.5), b = 0` on neurons whose AUROC for the source exceeds 0.5.

    A neuron's AUROC is that of its largest activation over a prompt's tokens as a detector of the source's prompts
    (Suau et al. 2024, arXiv 2407.12824, equation 3), on the untouched network. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = MLP_LINEARS

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        left, reached = task.source_activations("max"), task.target_activations("max")
        maps = {name: task.fitted(name, dampening_map, stacked(u), stacked(reached[name])) for name, u in left.items()}
        return Fit(maps, [task.cost(maps)])


def auroc(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Per neuron the probability, float64 `[d]`, that a source sample exceeds a target sample, ties counting half.

    Args:
        source: `[n, d]`.
        target: `[m, d]`.

    >>> auroc(torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
    tensor([0.8750], dtype=torch.float64)
    """
    values, others = source.T.contiguous(), target.T.contiguous().sort().values  # [d, n], [d, m]
    below = torch.searchsorted(others, values, right=False) + torch.searchsorted(others, values, right=True)
    return below.double().mean(1) / (2 * len(target))


def dampening_map(source: torch.Tensor, target: torch.Tensor) -> AffineMap:
    """One site's map from largest activations, `[n, d]` and `[m, d]`."""
    scale = (1 - 2 * (auroc(source, target) - 0.5)).clamp_max(1).float()
    return AffineMap(scale, torch.zeros_like(scale))
