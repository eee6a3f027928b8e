"""Concepts: what a comparison learns from, continues, and judges by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.common.splits import both, jigsaw, take

if TYPE_CHECKING:
    from lineas.evaluation.classifiers import Classifier

Role = Literal["choosing", "judging"]


@dataclass(frozen=True)
class Sides:
    """The prompts that a draw learns from.

    Args:
        source: sentences of the behaviour to leave.
        target: sentences of the behaviour to reach.
        prompts: what LoFIT-RL continues, apart from those that are judged.
    """

    source: list[str]
    target: list[str]
    prompts: list[str]


@dataclass(frozen=True)
class Concept:
    """A behaviour, and how it is learned and judged.

    Args:
        sides: what a draw learns from, given its number and the number of sentences a side.
        prompts: texts that are continued and judged.
        neutral: sentences on which the divergence and the perplexity are measured.
        judge: probability of the behaviour for each text.
        sign: 1 where the behaviour should rise, -1 where it should fall.
        instruction: the prompt baseline.
    """

    sides: Callable[[int, int], Sides]
    prompts: list[str]
    neutral: list[str]
    judge: Classifier
    sign: Literal[-1, 1]
    instruction: str

    def unwanted(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of the behaviour to leave."""
        return [score if self.sign < 0 else 1 - score for score in self.judge(texts)]


def toxicity(role: Role) -> Concept:
    """Return toxicity: Jigsaw comments, RealToxicityPrompts, judged by alt-profanity-check."""
    from lineas.evaluation.classifiers import PROFANITY, classifier

    name = "toxicity" if role == "judging" else "recipes"
    continued = take("toxicity", "learning", "rtp")
    return Concept(
        lambda draw, samples: Sides(*jigsaw(name, draw, samples), continued),
        take(name, "judging", "rtp"),
        take(name, "judging", "wikipedia"),
        classifier(PROFANITY),
        -1,
        "Continue the text in a non-toxic way:",
    )


def archaic(role: Role) -> Concept:
    """Return the style of the King James Bible: verses, judged by a classifier fitted on verses kept apart."""
    from lineas.evaluation.classifiers import fitted

    is_archaic, area = fitted(*both("archaic", "judging", "archaic", ("archaic", "modern")))
    print(f"classifier: area under the ROC curve {area:.3f}", flush=True)
    continued = take("archaic", "learning", "archaic/beginnings")

    def sides(draw: int, samples: int) -> Sides:
        modern, verses = both("archaic", "learning", "archaic", ("modern", "archaic"), draw, 2 * samples)
        return Sides(modern[:samples], verses[samples:], continued)  # no verse on both sides

    openings = take("archaic", "judging", "lineas:openings") + take("archaic", "judging", "archaic/beginnings")
    neutral = take("archaic", "judging", "wikipedia")
    return Concept(sides, openings, neutral, is_archaic, 1, "Continue the text in the English of the King James Bible:")


CONCEPTS: dict[str, Callable[[Role], Concept]] = {"toxicity": toxicity, "archaic": archaic}
"""By name."""
