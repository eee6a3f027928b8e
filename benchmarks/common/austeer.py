"""AUSteer: few neurons, scaled by how well they tell the sides apart (Feng et al. 2026, arXiv 2602.04428)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.intervention.maps import AffineMap
from lineas.learning.aura import auroc
from lineas.learning.method import Fit, Task

TIE = 1e-9
"""Scores that differ by less are equal; all neurons with the last of them are taken."""


@dataclass(frozen=True)
class AUSteer:
    """The neurons that tell the sides apart best, scaled by how well they do.

    A neuron's score is the share of pairs of prompts in which the target's activation is the larger one, with a minus
    sign where it is the smaller one in most. The `count` largest, of all sites, get `w = 1 + score, b = 0`. The authors
    read the last token of paired prompts; here all tokens and all pairs count.
    """

    default_sites: ClassVar[str | None] = r".*\.layers\.\d+\.mlp"

    count: int = 100

    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        source, target = task.source_activations(), task.target_activations()
        shares = {name: auroc(target[name], u) for name, u in source.items()}
        scores = {name: torch.where(share >= 0.5, share, share - 1) for name, share in shares.items()}
        least = torch.cat([*scores.values()]).abs().sort(descending=True).values[self.count - 1]
        maps = {}
        for name, score in scores.items():
            scale = 1 + torch.where(score.abs() >= least - TIE, score, 0).float()
            maps[name] = AffineMap(scale, torch.zeros_like(scale))
        return Fit(maps, [task.cost(maps)])
