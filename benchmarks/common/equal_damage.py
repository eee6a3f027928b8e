"""Equal damage: the strength at which a system has a given divergence, and its effect there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

import lineas
from benchmarks.common import record
from lineas.evaluation.perplexity import compared, sentence_parts
from lineas.learning.optimizers import search
from lineas.models.scoring import predictions

if TYPE_CHECKING:
    from benchmarks.common.concepts import Concept, Sides
    from benchmarks.common.rivals import Learned, Way
    from lineas.evaluation.variants import System

NEAR = 0.02
"""Tolerance of the divergence, relative to the one that is asked for."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 20, "batch_size": 50}


class Neutral:
    """Sentences on which a changed model is compared with the untouched one, whose predictions are kept.

    The figures are those of `lineas.evaluation.perplexity.damages`.
    """

    def __init__(self, model: lineas.TextModel, texts: Sequence[str]) -> None:
        self._model = model
        self._parts = sentence_parts(model, texts)
        self._untouched = [self._predicted(part) for part in self._parts]

    @torch.no_grad()
    def _predicted(self, part: Any) -> torch.Tensor:
        return predictions(self._model, part).log_softmax(-1)

    def measure(self, system: System) -> dict[str, float]:
        """Return the mean divergence, in nats a token, and the mean perplexity of a system without a prefix."""
        perplexities: list[float] = []
        divergences: list[float] = []
        with system.applied(self._model):
            for part, plain in zip(self._parts, self._untouched):
                perplexity, divergence = compared(part, plain, self._predicted(part))
                perplexities += perplexity.tolist()
                divergences += divergence.tolist()
        return {"kl": mean(divergences), "perplexity": mean(perplexities)}


@dataclass
class Curve:
    """The damage of what was learned along strength; strengths are measured as they are asked for.

    Args:
        learned: what was learned, as a function from a strength to a system.
        neutral: sentences on which damage is measured.
    """

    learned: Learned
    neutral: Neutral
    measured: dict[float, dict[str, float]] = field(default_factory=dict)

    def at(self, strength: float) -> dict[str, float]:
        """Return the damage at a strength."""
        if strength not in self.measured:
            self.measured[strength] = self.neutral.measure(self.learned(strength))
        return self.measured[strength]

    def strength(self, divergence: float) -> float:
        """Return the strength at which a divergence is reached, or nearly; nearer ones were not found."""

        def distance(strength: float) -> float:
            kl = self.at(strength)["kl"]
            return math.sqrt(max(kl, 0.0)) if math.isfinite(kl) else math.inf

        known = [(abs(math.log(one["kl"] / divergence)), s) for s, one in self.measured.items() if one["kl"] > 0]
        nearest = min(known)[1] if known else 1.0
        kl = self.at(nearest)["kl"]
        first = nearest * math.sqrt(divergence / kl) if math.isfinite(kl) and kl > 0 else nearest
        search(distance, math.sqrt(divergence), first, NEAR)
        return min(self.measured, key=lambda s: abs(math.log(max(self.measured[s]["kl"], 1e-12) / divergence)))


@dataclass
class Bench:
    """A model and a concept on which systems are judged.

    Args:
        name: hub id or folder of the model; None for the default one.
        concept: what is learned and judged.
        count: number of prompts.
        sentences: number of neutral sentences.
    """

    name: str | None
    concept: Concept
    count: int
    sentences: int

    @cached_property
    def model(self) -> lineas.TextModel:
        """The model in float32, on which methods learn and damage is measured."""
        return record.text_model(self.name, "float32")

    @cached_property
    def writer(self) -> lineas.TextModel:
        """The model in bfloat16, which writes the texts in half the time."""
        return record.text_model(self.name, "bfloat16")

    @cached_property
    def neutral(self) -> Neutral:
        """The neutral sentences, with the untouched model's predictions."""
        return Neutral(self.model, self.concept.neutral[: self.sentences])

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts, by length, so that little is padded."""
        return sorted(self.concept.prompts[: self.count], key=len)

    def curve(self, way: Way, sides: Sides, seed: int, folder: Path) -> Curve:
        """Return the damage along strength of what is learned from sides, now or before, and kept in a folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Curve(way(self.model, sides, self.concept.unwanted, seed, folder), self.neutral)

    def judged(self, curve: Curve, divergence: float, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the strength at which a divergence is reached, and the damage and the effect there."""
        strength = curve.strength(divergence)
        return {"strength": strength, **curve.at(strength), **self.effect(curve.learned(strength), seeds)}

    def effect(self, system: System, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the share and the mean score of continuations with the behaviour, and those of every seed."""
        from lineas.evaluation.variety import distinct

        prompts, scores, texts = [system.prefix + prompt for prompt in self.prompts], [], []
        with system.applied(self.writer):
            for seed in seeds:
                texts += [self.writer.generate(prompts, seed=seed, **SAMPLING)]
                scores += [list(self.concept.judge(texts[-1]))]
        return {
            "share": mean(mean(float(score >= 0.5) for score in one) for one in scores),
            "score": mean(map(mean, scores)),
            "score_by_seed": list(map(mean, scores)),
            "distinct_2": mean(distinct(one, 2) for one in texts),
        }
