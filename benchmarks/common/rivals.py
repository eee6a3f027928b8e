"""Rivals: the methods that are compared at equal damage, what each learns, and the systems that it becomes.

Each is given the best of the sites that its authors use and the sites of LinEAS (`WAYS`, chosen by `comparison.ways` on
prompts that judge nothing).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

import lineas
from benchmarks.common.methods import relative
from lineas.intervention.maps import AffineMap
from lineas.learning.aura import auroc
from lineas.learning.capture import activations
from lineas.learning.method import Fit, Task
from lineas.modules import blocks
from lineas.sites import Site, upper_sites
from lineas.steering.hooks import edited

if TYPE_CHECKING:
    from benchmarks.common.concepts import Sides
    from lineas.evaluation.classifiers import Classifier
    from lineas.evaluation.variants import System

Learned = Callable[[float], "System"]
"""What was learned, as a function from a strength to a system."""
Way = Callable[[lineas.TextModel, "Sides", "Classifier", int, Path], Learned]
"""Learns on a model from the sides of a draw, given what the oracle avoids, the seed and a folder to keep it in."""
Where = Callable[[lineas.TextModel], list[str] | None]
"""Names of sites; None for those of the method's authors."""


@dataclass(frozen=True)
class AUSteer:
    """The neurons that tell the sides apart best, scaled by how well they do (Feng et al. 2026, arXiv 2602.04428).

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
            scale = 1 + torch.where(score.abs() >= least, score, 0).float()
            maps[name] = AffineMap(scale, torch.zeros_like(scale))
        return Fit(maps, [task.cost(maps)])


@dataclass(frozen=True)
class Transported:
    """The model whose activations are moved by the optimal map between two Gaussians in a subspace.

    Args:
        name: name in tables.
        maps: for each site the center `[d]`, the directions `[d, k]`, and the map of coordinates `[k, k]` and `[k]`.
        strength: share of the way; default: 1.
    """

    name: str
    maps: dict[Site, tuple[torch.Tensor, ...]] = field(repr=False)
    strength: float = 1.0
    prefix: str = field(default="", init=False)

    @contextmanager
    def applied(self, model: lineas.TextModel) -> Iterator[_Moving]:
        """Return a context within which the model is changed."""
        moving = _Moving(self.strength)
        with edited(model.network, {site: partial(moving.moved, *maps) for site, maps in self.maps.items()}):
            yield moving

    def identity(self) -> dict[str, Any]:
        """Return the part of a cache key that names this system."""
        sums = {site.name: [float(one.double().sum()) for one in maps] for site, maps in self.maps.items()}
        return {"transport": sums, "strength": self.strength}


class _Moving:
    """The change that transports activations; it can be switched off."""

    def __init__(self, strength: float) -> None:
        self._strength, self._on = strength, True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context within which the model is untouched."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def moved(
        self,
        center: torch.Tensor,
        directions: torch.Tensor,
        factor: torch.Tensor,
        offset: torch.Tensor,
        z: torch.Tensor,
    ) -> torch.Tensor:
        """Return the activation z, moved a share of its way."""
        if not self._on:
            return z
        before = (z.float() - center) @ directions
        return z + (self._strength * (before @ factor.T + offset - before) @ directions.T).to(z)


def gaussian(
    model: lineas.TextModel,
    sides: Sides,
    unwanted: Classifier,
    seed: int,
    folder: Path,
    depths: Sequence[float],
    k: int,
) -> Learned:
    """Learn Gaussian optimal transport in the first k principal components, on the outputs of blocks at some depths.

    Of coordinates y the map is `m_t + A (y - m_s)`, with `A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2` for the covariances
    S and T of source and target (Nanfack et al. 2026, arXiv 2603.04355; one or two blocks at 40 to 60 % of the depth).
    """
    names = [name for name, _ in blocks(model.network)]
    sites = [Site(names[round(depth * (len(names) - 1))]) for depth in depths]
    source, target = (activations(model, model.samples(side), sites) for side in (sides.source, sides.target))
    maps = {}
    for site in sites:
        u, v = source[site.name].double(), target[site.name].double()
        center = torch.cat([u, v]).mean(0)
        directions = torch.linalg.svd(torch.cat([u, v]) - center, full_matrices=False).Vh[:k].T
        a, b = (u - center) @ directions, (v - center) @ directions
        s, t = (_covariance(one) for one in (a, b))
        root = _power(s, 0.5)
        factor = _power(s, -0.5) @ _power(root @ t @ root, 0.5) @ _power(s, -0.5)
        offset = b.mean(0) - factor @ a.mean(0)
        maps[site] = tuple(one.float() for one in (center, directions, factor, offset))
    return lambda strength: Transported("gaussian", maps, strength)


def _covariance(samples: torch.Tensor) -> torch.Tensor:
    """Return the covariance `[k, k]` of `[n, k]`, with a hundredth of its mean variance added."""
    covariance = samples.T.cov()
    return covariance + 0.01 * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()


def _power(matrix: torch.Tensor, power: float) -> torch.Tensor:
    """Return a power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(1e-12) ** power) @ vectors.T


def maps(
    model: lineas.TextModel, sides: Sides, unwanted: Classifier, seed: int, folder: Path, make: Any, where: Where
) -> Learned:
    """Learn affine maps by a method at some sites, or read them where they were learned before."""
    from lineas.evaluation.variants import Steered

    method = make(unwanted)
    if not folder.exists():
        source = sides.prompts if isinstance(method, lineas.LoFITRL) else sides.source
        _learned_at_some_rate(model, source, sides.target, method, where(model), seed).save(folder)
    learned = lineas.Intervention.load(folder)
    return lambda strength: Steered("maps", learned, strength, other_model=True)


def lora(model: lineas.TextModel, sides: Sides, unwanted: Classifier, seed: int, folder: Path) -> Learned:
    """Fine-tune a LoRA adapter on the target, or take the one that is there."""
    from lineas.evaluation.variants import Adapted
    from lineas.learning.lora import LoRA

    if not (folder / "adapter_model.safetensors").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        LoRA().fine_tune(model, sides.target, folder, seed=seed)
    return lambda strength: Adapted("lora", folder, strength)


def _learned_at_some_rate(
    model: lineas.TextModel, source: Sequence[str], target: Sequence[str], method: Any, sites: Any, seed: int
) -> lineas.Intervention:
    """Return what a method learns; where its rate blows up, with a tenth of it, and so on, as the error says."""
    from dataclasses import replace

    try:
        return lineas.learn(model, source, target, method, sites, seed=seed, progress=False)
    except lineas.DivergedError as error:
        print(error, flush=True)
        slower = replace(method, learning_rate=error.suggestion)
        return _learned_at_some_rate(model, source, target, slower, sites, seed)


def authors(model: lineas.TextModel) -> None:
    """Return None: the method's own sites."""


def norms(model: lineas.TextModel) -> list[str]:
    """Return the norms before the MLPs in the upper two thirds of the blocks, which LinEAS takes."""
    return _patterns(upper_sites(model.network, model.default_sites(None)))


def all_norms(model: lineas.TextModel) -> list[str]:
    """Return the norms before the MLPs of all blocks."""
    return _patterns(model.default_sites(None))


def upper_mlps(model: lineas.TextModel) -> list[str]:
    """Return the outputs of the MLPs in the upper two thirds of the blocks."""
    return _patterns(upper_sites(model.network, model.default_sites(AUSteer.default_sites)))


def upper_linears(model: lineas.TextModel) -> list[str]:
    """Return the linears of the MLPs in the upper two thirds of the blocks."""
    return _patterns(upper_sites(model.network, model.default_sites(lineas.AurA.default_sites)))


def _patterns(sites: Sequence[Site]) -> list[str]:
    return [site.name.replace(".", r"\.") for site in sites]


def _maps(make: Callable[[Classifier], Any], where: Where) -> Way:
    return partial(maps, make=make, where=where)


WAYS: dict[str, dict[str, Way]] = {
    "caa": {
        "middle block": _maps(lambda unwanted: lineas.CAA(), authors),
        "all blocks": _maps(lambda unwanted: lineas.CAA(layers="all"), authors),
        "upper norms": _maps(lambda unwanted: lineas.CAA(layers="all"), norms),
    },
    "iti-c": {
        "attention": _maps(lambda unwanted: lineas.ITIc(), authors),
        "upper norms": _maps(lambda unwanted: lineas.ITIc(), norms),
    },
    "mean-act": {
        "attention": _maps(lambda unwanted: lineas.MeanAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.MeanAcT(), norms),
    },
    "lin-act": {
        "attention": _maps(lambda unwanted: lineas.LinAcT(), authors),
        "upper norms": _maps(lambda unwanted: lineas.LinAcT(), norms),
    },
    "aura": {
        "MLP linears": _maps(lambda unwanted: lineas.AurA(), authors),
        "upper MLP linears": _maps(lambda unwanted: lineas.AurA(), upper_linears),
    },
    "austeer": {
        "MLPs": _maps(lambda unwanted: AUSteer(), authors),
        "upper MLPs": _maps(lambda unwanted: AUSteer(), upper_mlps),
        "upper norms": _maps(lambda unwanted: AUSteer(), norms),
    },
    "gaussian": {
        "one block": partial(gaussian, depths=(0.5,), k=16),
        "two blocks": partial(gaussian, depths=(0.4, 0.6), k=16),
    },
    "lora": {"all linears": lora},
    "lineas-paper": {"upper norms": _maps(lambda unwanted: lineas.LinEAS.paper(), norms)},
    "lineas-relative": {
        "norms": _maps(lambda unwanted: relative(), all_norms),
        "upper norms": _maps(lambda unwanted: relative(), norms),
    },
    "lineas": {"upper norms": _maps(lambda unwanted: lineas.LinEAS(), authors)},
    "lofit-rl": {"upper norms": _maps(lambda unwanted: lineas.LoFITRL(unwanted), norms)},
}
"""By method, in the order of tables, and by site: what learns it."""
