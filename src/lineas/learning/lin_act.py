"""Lin-AcT: sorted samples regressed on each other, one layer after the other (arXiv 2410.23054)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lineas.exclusive import exclusively
from lineas.learning.fitting import ATTENTION_OUT, Fit, Task
from lineas.learning.layerwise import fit_layerwise
from lineas.transport import linear_map


@dataclass(frozen=True)
class LinAcT:
    """The affine map nearest to optimal transport, site by site: the method that LinEAS improves on.

    `(w, b) = argmin sum_i (sort(target)_i - w sort(source)_i - b)^2` a neuron (Rodriguez et al. 2024, arXiv 2410.23054,
    equation 6; with the exact quantile coupling where the sides differ in number), where the source's activations have
    passed the maps of the sites before. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        return fit_layerwise(task, linear_map)
