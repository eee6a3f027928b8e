"""What every method of learning shares: the task it is given, what it gives back, and where it acts by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.intervention.maps import AffineMap
from lineas.learning.capture import Model, activations
from lineas.learning.transport import Quantiles
from lineas.models.samples import Samples
from lineas.sites import Pooling, Site
from lineas.steering.hooks import Edit, edited

ATTENTION_OUT = r".*\.(o_proj|out_proj|attn\.c_proj|(self_attn|attention|self_attention)\.dense)"
"""The linear after attention, in Llama, OPT, GPT-2, GPT-NeoX, Falcon and most others."""
MLP_LINEARS = (
    r".*\.(mlp|ffn|feed_forward|block_sparse_moe|shared_mlp)\..*(proj|c_fc|dense_\w+|fc[12]|w[123]|_linear|experts)"
    r"|.*\.layers\.\d+\.fc[12]"
)
"""The linears of the MLPs, in the same families; all experts together where they are one module."""
BLOCK = r".*\.(layers|h|blocks)\.\d+"
"""Whole blocks, whose output is the residual stream."""

Progress = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the cost (LinEAS: before that step's update)."""

FitMap = Callable[[torch.Tensor, torch.Tensor], AffineMap]
"""From source activations `[n, d]` and target activations `[m, d]` to the map of one site."""


@dataclass(frozen=True)
class Task:
    """What is to be learned; the network's weights ask for no gradients meanwhile (see `lineas.models.frozen`).

    Args:
        model: what to steer.
        source: the n prompts of the behaviour to leave, encoded.
        target: the m prompts of the behaviour to reach, encoded.
        sites: modules whose outputs carry maps.
        seed: seed of everything random.
        pooling: how the tokens or pixels of a prompt become one activation.
        memory: number of bytes that learning may take above the weights; None for half of what is free.
        progress: called after every step.
        start: by site name, the maps to begin with; None for the identity.
        within: whether neurons that the start leaves as they are stay so.
    """

    model: Model
    source: Samples[Any]
    target: Samples[Any]
    sites: Sequence[Site]
    seed: int = 0
    pooling: Pooling = "mean"
    memory: int | None = None
    progress: Progress | None = None
    start: Mapping[str, AffineMap] | None = None
    within: bool = False

    def source_activations(self, pooling: Pooling | None = None) -> dict[str, torch.Tensor]:
        """Return the source's activations, by site name `[n, d]`, without maps or with those that are in place."""
        return activations(self.model, self.source, self.sites, pooling or self.pooling)

    def target_activations(self, pooling: Pooling | None = None) -> dict[str, torch.Tensor]:
        """Return the target's activations, by site name `[m, d]`."""
        return activations(self.model, self.target, self.sites, pooling or self.pooling)

    def fitted(self, name: str, fit_map: FitMap, left: torch.Tensor, reached: torch.Tensor) -> AffineMap:
        """The map of one site, by a formula.

        Args:
            name: of the site.
            fit_map: the formula.
            left: the source's activations, `[n, d]`.
            reached: the target's, `[m, d]`.

        Raises:
            LineasError: naming the site where the map is not finite.
        """
        if not bool(left.isfinite().all() & reached.isfinite().all()):
            raise overflown(name, self.model.network)
        try:
            return fit_map(left, reached)
        except LineasError as error:
            raise LineasError(f"nothing was learned at {name}: {error}") from None

    def cost(self, maps: Mapping[str, AffineMap], reached: Mapping[str, torch.Tensor] | None = None) -> float:
        """The cost with maps in place, averaged over all sites: what LinEAS minimises, for any method's maps.

        Args:
            maps: by site name, for some or all of the sites.
            reached: the target's activations, `self.target_activations()`, where they are at hand.
        """
        reached = self.target_activations() if reached is None else reached
        with edited(self.model.network, {s: acting(maps[s.name], s) for s in self.sites if s.name in maps}):
            return distance(self.source_activations(), reached)


@dataclass(frozen=True)
class Fit:
    """What a method gives.

    Args:
        maps: by site name, for some or all of the task's sites.
        costs: the cost, averaged over sites, before each update; of methods without updates, with the maps in place.
        settings: what the method's own fields leave open, such as the learning rate that followed from the model.
        of: number of steps that were asked for, where an interruption ended them; None for a whole fit.
    """

    maps: dict[str, AffineMap]
    costs: list[float]
    settings: dict[str, Any] = field(default_factory=dict)
    of: int | None = None


class Method(Protocol):
    """A way of learning: a frozen dataclass whose fields are recorded, with one function.

    `default_sites`: the pattern of the sites that its authors use; None for the norms before the MLPs.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    default_sites: ClassVar[str | None]

    def fit(self, task: Task) -> Fit:
        """Learn the maps."""
        ...


def overflown(name: str, network: nn.Module) -> LineasError:
    """The error for a site where activations, and so its map, are not finite."""
    return LineasError(
        f"the map at {name} is not finite, so nothing was learned; the activations there overflow in "
        f"{next(network.parameters()).dtype}, take bfloat16 or float32, or leave the site out."
    )


def acting(map_: AffineMap, site: Site) -> Edit:
    """A fixed map as an edit."""
    return lambda z: map_(z, site.axis)


def distance(left: Mapping[str, torch.Tensor], reached: Mapping[str, torch.Tensor]) -> float:
    """The cost of activations `[n, d]` against their target `[m, d]`, averaged over sites."""
    return float(torch.stack([Quantiles.of(v, len(left[name])).cost(left[name]) for name, v in reached.items()]).mean())
