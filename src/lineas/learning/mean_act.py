"""Mean-AcT: the means of the activations made equal, one layer after the other (arXiv 2410.23054)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lineas.exclusive import exclusively
from lineas.learning.fitting import ATTENTION_OUT, Fit, Task
from lineas.learning.layerwise import fit_layerwise
from lineas.transport import mean_map


@dataclass(frozen=True)
class MeanAcT:
    """A shift to the target's mean, site by site.

    `w = 1, b = mean(target) - mean(source)` a neuron (Rodriguez et al. 2024, arXiv 2410.23054, section 3), where the
    source's activations have passed the maps of the sites before. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        return fit_layerwise(task, mean_map)
