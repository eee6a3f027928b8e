"""CAA: the difference of means added to the residual stream (Rimsky et al. 2024, arXiv 2312.06681)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from lineas.checks import check_settings
from lineas.learning.method import BLOCK, Fit, Task, fit_untouched
from lineas.learning.transport import mean_map
from lineas.steering.exclusive import exclusively


@dataclass(frozen=True)
class CAA:
    """Contrastive activation addition: `w = 1, b = mean(target) - mean(source)` on the output of blocks.

    The activations are those of the untouched network at every site, unlike Mean-AcT's (Rimsky et al. 2024,
    arXiv 2312.06681, equation 1; here with means over unpaired prompts and all their tokens). The seed is not used.

    Args:
        layers: sites that get the vector, "middle" or "all". "middle" is the middle one of the sites alone, which the
            authors of CAA found best.
    """

    default_sites: ClassVar[str | None] = BLOCK

    layers: Literal["middle", "all"] = "middle"

    def __post_init__(self) -> None:
        check_settings(self)

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site, or one map altogether."""
        if self.layers == "middle":
            task = replace(task, sites=[task.sites[len(task.sites) // 2]])
        return fit_untouched(task, mean_map)
