"""LinEAS: all maps learned at once, end to end through the frozen network (arXiv 2503.10679)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from lineas.checks import DIVERGENCE, PAIR, RATE, STEPS, WEIGHT, check_settings, within
from lineas.errors import LineasError
from lineas.folding.fold import DoesNotFoldError
from lineas.folding.slots import slots
from lineas.intervention.maps import AffineMap
from lineas.learning import penalty
from lineas.learning.capture import backpropagate, capture
from lineas.learning.fisher import Divergence, diagonal, score_gradients, surprise_gradients
from lineas.learning.interruption import stoppable
from lineas.learning.kept_states import keeping_states
from lineas.learning.memory import for_states, largest_part, largest_predicted_part
from lineas.learning.method import Fit, Progress, Task
from lineas.learning.optimizers import DeviationAdam, NaturalGradient, PaperOptimizer, Sizes
from lineas.learning.trained_maps import TrainedMaps, units
from lineas.learning.transport import Quantiles
from lineas.sites import Site
from lineas.steering.exclusive import exclusively
from lineas.steering.hooks import edited

FEW, MANY = 5, 20
"""Number of steps of the natural gradient, and of the other optimizers."""
BUDGET = 0.02
"""Divergence that the natural gradient spends, in nats a token."""
BLOWN_UP = 100
"""A cost that is this many times the first step's shows that the learning rate is too high."""
READ_EVERY = 10
"""Number of steps after which the costs are read on a GPU."""
NEGLIGIBLE = 1e-6
"""A cost below this share of the target's mean square is rounding, so that equal sides do not count as diverged."""


class DivergedError(LineasError):
    """Learning diverged because its steps were too large; `suggestion` is a smaller learning rate or divergence.

    Args:
        what: beginning of the sentence: the value that is too large or not finite, and the step.
        rate: learning rate that was used, or the budget of divergence.
        setting: name of the setting that the rate is.
    """

    def __init__(self, what: str, rate: float, setting: str = "learning rate") -> None:
        self.rate, self.suggestion = rate, float(f"{rate / 10:.2g}")
        self._what, self._setting = what, setting
        super().__init__(f"{what} with {setting} {rate:.3g}; nothing was learned, try {self.suggestion:.2g}.")

    def __reduce__(self) -> tuple[Any, ...]:  # so that it can be pickled, from one process to another
        return type(self), (self._what, self.rate, self._setting)


@dataclass(frozen=True)
class LinEAS:
    """End-to-end learning of affine maps with a 1-D Wasserstein cost at all sites and a sparse group lasso.

    Minimises `(1/L) sum_l cost(u[l], v[l]) + gamma sum_l penalty(scale - 1) + penalty(shift)` (equations 2 to 6), where
    u[l] are the source prompts' pooled activations after the maps, and v[l] the target's without maps. It takes
    proximal gradient steps with a cosine schedule from the learning rate to a thousandth of it.

    Args:
        steps: number of optimizer steps. None stands for 5 with "natural", and 20 with the others.
        optimizer: optimizer, "auto", "natural", "relative", "adam" or "sgd". "auto" is "natural" for texts, and
            "relative" for images or with a learning rate. "natural" is the natural gradient: it measures a step by what
            it changes in the model's predictions on neutral text, and ends at a budget of divergence. "relative" is
            Adam with a warm-up. It measures a step of a shift in the standard deviation of its neuron over all prompts,
            and a step of a scale in SCALE_UNIT. So one rate serves neurons, layers and models whose activations differ
            by orders of magnitude. "adam" (betas 0.9, 0.9) and "sgd" (no momentum) are the paper's, with steps in the
            activations' own units.
        divergence: budget of the natural gradient: divergence from the untouched model on neutral text at strength 1,
            in nats a token; None stands for 0.02.
        learning_rate: largest learning rate of the other optimizers. None stands for 0.1 with "relative", 0.01 with
            "adam", and `0.01 L d / n` with "sgd" (L sites of d neurons, n prompts in a step). The last undoes the
            cost's division by L d and its sum over n.
        gamma: weight of the sparse group lasso; 0 changes every neuron, a larger weight changes fewer. With "natural"
            the lasso is on changes in root nats, so gamma is the cost that a neuron has to save for each.
        lambda_1: weight of single neurons in the penalty.
        lambda_g: weight of whole groups (the scales or the shifts of a site) in the penalty. The support is smallest
            with 0.
        refit: learn as many steps again without the penalty, on the neurons that it left in the support. The penalty
            then selects neurons without shrinking their maps.
        batch_size: number of source prompts in a step, drawn anew each time; None takes all. The target stays whole,
            since the exact quantile coupling compares samples of any two sizes.
        foldable: learn only what `lineas fold` can write into weights: scales alone where no bias takes a
            shift.

    Raises:
        LineasError: when a setting is out of its bounds, or `refit` is used with gamma 0.
    """

    default_sites: ClassVar[str | None] = None  # the norms before the MLPs

    steps: int = field(default=None, metadata=within(STEPS))  # pyright: ignore[reportAssignmentType]
    optimizer: Literal["auto", "natural", "relative", "adam", "sgd"] = "auto"
    divergence: float | None = field(default=None, metadata=within(DIVERGENCE))
    learning_rate: float | None = field(default=None, metadata=within(RATE, option="--lr"))
    gamma: float = field(default=0.0, metadata=within(WEIGHT))
    lambda_1: float = field(default=1.0, metadata=within(WEIGHT))
    lambda_g: float = field(default=1.0, metadata=within(WEIGHT))
    refit: bool = False
    batch_size: int | None = field(default=None, metadata=within(PAIR))
    foldable: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if self.optimizer == "natural" and self.learning_rate is not None:
            raise LineasError("the natural gradient has no learning rate; give a divergence, or another optimizer.")
        if self.divergence is not None and self.optimizer not in ("auto", "natural"):
            raise LineasError(f"a divergence is the budget of the optimizer 'natural', not of {self.optimizer!r}.")
        if self.divergence is not None and self.learning_rate is not None:
            raise LineasError("give a divergence (optimizer natural) or a learning rate (the others), not both.")
        if self.refit and self.gamma == 0:
            raise LineasError("refit learns once more what a penalty has kept; give a gamma above 0.")

    @classmethod
    def paper(cls, gamma: float = 0.0) -> LinEAS:
        """Return the published recipe for language models: SGD, rate 0.1, 1,000 steps, full batch (section 4.1)."""
        return cls(steps=1000, optimizer="sgd", learning_rate=0.1, gamma=gamma)

    @classmethod
    def paper_images(cls, gamma: float = 0.0) -> LinEAS:
        """Return the published recipe for text-to-image models: Adam, rate 1e-4, 1,000 steps of 4 prompts."""
        return cls(steps=1000, optimizer="adam", learning_rate=1e-4, batch_size=4, gamma=gamma)

    def resolved(self, for_texts: bool) -> LinEAS:
        """Return the method with its open settings chosen, but for the learning rate, for texts or for images."""
        optimizer = self.optimizer
        if optimizer == "auto":
            optimizer = "natural" if for_texts and self.learning_rate is None else "relative"
        if optimizer == "natural":
            return replace(self, optimizer=optimizer, steps=self.steps or FEW, divergence=self.divergence or BUDGET)
        if self.divergence is not None:
            raise LineasError(
                "a divergence is the budget of the optimizer 'natural', and images take 'relative' unless you name it "
                "(--optimizer natural)."
            )
        return replace(self, optimizer=optimizer, steps=self.steps or MANY)

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site.

        Returns:
            The maps, one cost per step (those of a refit after the others), and the learning rate that was used.

        Raises:
            DivergedError: when the cost is no longer finite, or far too large; it suggests a smaller learning rate.
        """
        method = self.resolved(for_texts=bool(task.source.ids))
        steps = method.steps
        if not self.refit:
            return method._fit(task)
        once = replace(task, progress=_counted(task.progress, 0, 2 * steps))
        selected = replace(method, refit=False)._fit(once)
        if selected.of is not None:  # interrupted
            return replace(selected, of=2 * steps)
        report = _counted(task.progress, steps, 2 * steps)
        once_more = replace(task, start=selected.maps, within=True, progress=report)
        fit = replace(method, refit=False, gamma=0.0)._fit(once_more)
        return replace(fit, costs=[*selected.costs, *fit.costs], of=None if fit.of is None else 2 * steps)

    def _fit(self, task: Task) -> Fit:
        """Learn with all settings chosen."""
        model, source, sites = task.model, task.source, task.sites
        generator = torch.Generator().manual_seed(task.seed)
        n = min(len(source), self.batch_size or len(source))
        target = task.target_activations()  # [m, d] or [m, k, d] per site
        trained = TrainedMaps(sites, target, task.start, task.within)
        if self.foldable:
            freeze_unfoldable(model.network, sites, trained)
        quantiles = {name: Quantiles.of(v, n) for name, v in target.items()}
        neurons = sum(v.shape[-1] for v in target.values())  # L d
        rates = {"natural": self.divergence, "relative": 0.1, "adam": 0.01, "sgd": 0.01 * neurons / n}
        rate = self.learning_rate or rates[self.optimizer] or 0.0
        optimizer = self._optimizer(task, trained, target, rate)
        negligible = NEGLIGIBLE * sum(float(v.float().square().mean()) for v in target.values()) / len(target)
        del target
        setting = "divergence" if self.optimizer == "natural" else "learning rate"
        record = _Record(self.steps, partial(DivergedError, rate=rate, setting=setting), negligible, task.progress)
        learned: dict[str, AffineMap] = {}  # after the last whole step, so that an interruption leaves no half step
        with edited(model.network, trained.edits):
            limit = largest_part(model, source, sites, neurons, task.memory)
        whole = source.batch(limit)
        if n == len(source):
            model = keeping_states(model, source, sites, whole.parts, for_states(model, task.memory))
        with stoppable(lambda: record.done, self.steps) as ending:
            for _ in range(self.steps):
                batch = whole
                if n < len(source):
                    batch = source.batch(limit, torch.randperm(len(source), generator=generator)[:n].tolist())
                with edited(model.network, trained.edits):
                    cost = backpropagate(model, batch, sites, quantiles, task.pooling)
                optimizer.step(partial(self._sparsen, trained))
                learned = trained.maps()
                record.add(cost)
        record.read()
        fit = Fit(learned, record.costs, {"learning_rate": rate}, self.steps if ending.interrupted else None)
        if isinstance(optimizer, NaturalGradient):
            trained.set(learned)
            fit = replace(fit, divergence=optimizer.stretch(), maps=trained.maps(), settings={})
            if n == len(source):
                with torch.no_grad(), edited(model.network, trained.edits):
                    moved = capture(model, whole, sites, task.pooling)
                end = float(torch.stack([quantiles[name].cost(u) for name, u in moved.items()]).mean())
                fit = replace(fit, end=end)
        if not all(bool(m.scale.isfinite().all() and m.shift.isfinite().all()) for m in fit.maps.values()):
            raise DivergedError(f"the maps are not finite after {record.done} steps", rate, setting)
        return fit

    def _optimizer(
        self, task: Task, trained: TrainedMaps, target: dict[str, torch.Tensor], rate: float
    ) -> NaturalGradient | DeviationAdam | PaperOptimizer:
        """Return the optimizer of the maps."""
        if self.optimizer == "natural":
            return self._natural(task, trained, sum(v.shape[-1] for v in target.values()))
        if self.optimizer == "relative":
            return DeviationAdam(trained.parameters, units(task.source_activations(), target), rate, self.steps)
        return PaperOptimizer(self.optimizer, trained.parameters, rate, self.steps)

    def _natural(self, task: Task, trained: TrainedMaps, neurons: int) -> NaturalGradient:
        """Return the optimizer whose steps are measured on the neutral prompts."""
        if task.neutral is None or self.divergence is None:
            raise LineasError("the natural gradient is measured on neutral prompts, and the task has none.")
        if task.within:
            trained.set({})  # the maps of the start only say which neurons may change
        limit, memory = largest_predicted_part(task.model, task.neutral, task.sites, neurons, task.memory)
        parts = task.neutral.batch(limit).parts
        model = keeping_states(task.model, task.neutral, task.sites, parts, for_states(task.model, task.memory))
        fisher = diagonal(score_gradients(model, parts, task.sites, task.seed))
        surprise = surprise_gradients(model, parts, trained.edits, trained.parameters)
        divergence = Divergence(model, parts, trained.edits, memory)
        return NaturalGradient(trained.parameters, fisher, surprise, divergence, self.divergence, self.steps)

    @torch.no_grad()
    def _sparsen(self, trained: TrainedMaps, sizes: Sizes, units: Sizes) -> None:
        """Take the proximal step after a gradient step of these sizes, for the penalty on changes in these units."""
        if self.gamma == 0:
            return
        identities = [1.0] * len(trained.scales) + [0.0] * len(trained.shifts)
        for parameter, size, unit, identity in zip(trained.parameters, sizes, units, identities):
            change = penalty.prox((parameter - identity) / unit, size * self.gamma, self.lambda_1, self.lambda_g)
            parameter.copy_(identity + unit * change)


def freeze_unfoldable(network: nn.Module, sites: Sequence[Site], trained: TrainedMaps) -> None:
    """Keep the scales and shifts that no weight can take at the identity."""
    by_site = {site.name: slots(network, site) for site in sites}
    unfoldable = {name: one.reason for name, one in by_site.items() if one.kind == "no"}
    if unfoldable:
        raise DoesNotFoldError(unfoldable, len(sites), ", leave them out")
    trained.fix(
        scales=[name for name, one in by_site.items() if not one.scale],
        shifts=[name for name, one in by_site.items() if not one.shift],
    )


def _counted(progress: Progress | None, before: int, steps: int) -> Progress | None:
    """Return a progress function for a part of all steps, which follows the steps `before`."""
    return None if progress is None else lambda done, _, cost: progress(before + done, steps, cost)


class _Record:
    """The costs so far; on a GPU they are read a few steps late, so that no step waits for them."""

    def __init__(
        self, steps: int, too_large: Callable[[str], DivergedError], negligible: float, progress: Progress | None
    ) -> None:
        self.costs: list[float] = []
        self._unread: list[torch.Tensor] = []
        self._steps, self._too_large, self._negligible, self._progress = steps, too_large, negligible, progress

    @property
    def done(self) -> int:
        """The number of steps that are done."""
        return len(self.costs) + len(self._unread)

    def add(self, cost: torch.Tensor) -> None:
        """Add a step's cost, which is the one before its update."""
        self._unread.append(cost)
        if cost.device.type == "cpu" or len(self._unread) == READ_EVERY:
            self.read()

    def read(self) -> None:
        """Wait for the costs that are not read yet."""
        unread, self._unread = self._unread, []
        for value in torch.stack(unread).tolist() if unread else []:
            if not math.isfinite(value) or (self.costs and value > BLOWN_UP * max(self.costs[0], self._negligible)):
                step = f"step {len(self.costs) + 1} of {self._steps}"
                raise self._too_large(f"the cost blew up to {value:.3g} at {step}")
            self.costs.append(value)
            if self._progress:
                self._progress(len(self.costs), self._steps, value)
