"""The interface of all methods of learning: the task, the result, and patterns of default sites."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.intervention.maps import AffineMap
from lineas.learning.capture import Model, activations, stacked
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
"""Function called after every step with (steps done, steps in all, cost); LinEAS gives the cost before the update."""

FitMap = Callable[[torch.Tensor, torch.Tensor], AffineMap]
"""Function from source activations `[n, d]` and target activations `[m, d]` to the map of one site."""


@dataclass(frozen=True)
class Task:
    """The input of a method; the network's weights require no gradients meanwhile (see `lineas.models.frozen`).

    Args:
        model: model to steer.
        source: the n prompts of the behaviour to leave, encoded.
        target: the m prompts of the behaviour to reach, encoded.
        sites: modules whose outputs carry maps.
        seed: seed of everything random.
        pooling: how the tokens or pixels of a prompt become one activation.
        memory: number of bytes for learning beside the weights; None for half of the free memory.
        progress: function called after every step; None for none.
        start: maps to begin with, by site name; None for the identity.
        within: whether neurons that the start does not change stay unchanged.
        neutral: prompts on which the model should stay as it is, encoded; None where the method needs none.
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
    neutral: Samples[Any] | None = None

    def source_activations(self, pooling: Pooling | None = None) -> dict[str, torch.Tensor]:
        """Return the source's activations by site name, `[n, d]`, after the maps that are in place."""
        return activations(self.model, self.source, self.sites, pooling or self.pooling)

    def target_activations(self, pooling: Pooling | None = None) -> dict[str, torch.Tensor]:
        """Return the target's activations by site name, `[m, d]`."""
        return activations(self.model, self.target, self.sites, pooling or self.pooling)

    def fitted(self, name: str, fit_map: FitMap, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        """Return the map of one site by a formula.

        Args:
            name: name of the site.
            fit_map: formula of the map.
            source: activations of the source, `[n, d]`.
            target: activations of the target, `[m, d]`.

        Raises:
            LineasError: when activations or the map are not finite; it names the site.
        """
        if not bool(source.isfinite().all() & target.isfinite().all()):
            raise overflow_error(name, self.model.network)
        try:
            return fit_map(source, target)
        except LineasError as error:
            raise LineasError(f"nothing was learned at {name}: {error}") from None

    def cost(self, maps: Mapping[str, AffineMap], target: Mapping[str, torch.Tensor] | None = None) -> float:
        """Return the cost with maps in place, averaged over all sites; it is the cost that LinEAS minimises.

        Args:
            maps: maps by site name, for some or all of the sites.
            target: activations of the target by site name, `[m, d]`; None computes them.
        """
        target = self.target_activations() if target is None else target
        with edited(self.model.network, {s: edit_of(maps[s.name], s) for s in self.sites if s.name in maps}):
            return distance(self.source_activations(), target)


@dataclass(frozen=True)
class Fit:
    """The result of a method.

    Args:
        maps: maps by site name, for some or all of the task's sites.
        costs: cost before each update, averaged over sites; methods without updates give one cost, with the maps in
            place.
        settings: settings that follow from the task, such as a learning rate that the method's field leaves open.
        of: number of steps that were asked for, if learning was interrupted; None if it was not.
        end: cost with the maps in place, of methods that compute it beside the costs.
        divergence: divergence from the untouched model on the neutral prompts, if it was measured.
    """

    maps: dict[str, AffineMap]
    costs: list[float]
    settings: dict[str, Any] = field(default_factory=dict)
    of: int | None = None
    end: float | None = None
    divergence: float | None = None


class Method(Protocol):
    """A way of learning: a frozen dataclass with one function `fit`, whose fields are recorded.

    `default_sites` is the pattern of the sites that its authors use; None stands for the norms before the MLPs.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    default_sites: ClassVar[str | None]

    def fit(self, task: Task) -> Fit:
        """Learn the maps."""
        ...


def settings_of(method: Method) -> dict[str, Any]:
    """Return the name of a method and its fields, as they are recorded."""
    return {"name": type(method).__name__, **{one.name: getattr(method, one.name) for one in fields(method)}}


def fit_untouched(task: Task, fit_map: FitMap, pooling: Pooling | None = None) -> Fit:
    """Fit every site's map on activations of the untouched network; a pooling of None is the task's."""
    source, target = task.source_activations(pooling), task.target_activations(pooling)
    maps = {name: task.fitted(name, fit_map, stacked(u), stacked(target[name])) for name, u in source.items()}
    return Fit(maps, [task.cost(maps, target if pooling is None else None)])


def overflow_error(name: str, network: nn.Module) -> LineasError:
    """Return the error for a site whose activations, and so its map, are not finite."""
    return LineasError(
        f"the map at {name} is not finite, so nothing was learned; the activations there overflow in "
        f"{next(network.parameters()).dtype}, take bfloat16 or float32, or leave the site out."
    )


def edit_of(map_: AffineMap, site: Site) -> Edit:
    """Return a fixed map as an edit of its site."""
    return lambda z: map_(z, site.axis)


def distance(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> float:
    """Return the cost of source activations `[n, d]` against target activations `[m, d]`, averaged over sites."""
    costs = [Quantiles.of(v, len(source[name])).cost(source[name]) for name, v in target.items()]
    return float(torch.stack(costs).mean())
