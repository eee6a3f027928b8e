"""AurA: neurons dampened by how well they detect the source (Suau et al. 2024, arXiv 2407.12824)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.intervention.maps import AffineMap
from lineas.learning.method import MLP_LINEARS, Fit, Task, fit_untouched
from lineas.steering.exclusive import exclusively


@dataclass(frozen=True)
class AurA:
    """AUROC adaptation: `w = 1 - 2 (AUROC - 0.5), b = 0` on neurons whose AUROC for the source exceeds 0.5.

    The neuron's largest activation over a prompt's tokens is the detector of the source's prompts (Suau et al. 2024,
    arXiv 2407.12824, equation 3). The network is untouched, and the seed is not used.
    """

    default_sites: ClassVar[str | None] = MLP_LINEARS

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        return fit_untouched(task, dampening_map, "max")


def auroc(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return each neuron's probability, `[d]`, that a sample of `[n, d]` exceeds one of `[m, d]`; ties count half.

    >>> auroc(torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
    tensor([0.8750], dtype=torch.float64)
    """
    values, ordered = source.T.contiguous(), target.T.contiguous().sort().values  # [d, n], [d, m]
    below = torch.searchsorted(ordered, values, right=False) + torch.searchsorted(ordered, values, right=True)
    return below.double().mean(1) / (2 * len(target))


def dampening_map(source: torch.Tensor, target: torch.Tensor) -> AffineMap:
    """Return the map of one site from its largest activations, `[n, d]` and `[m, d]`."""
    scale = (1 - 2 * (auroc(source, target) - 0.5)).clamp_max(1).float()
    return AffineMap(scale, torch.zeros_like(scale))
