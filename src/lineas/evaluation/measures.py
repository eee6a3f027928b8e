"""What is measured of one system, by names alone: of texts and of pictures, in this process or in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.classifiers import classifier
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.judges import judge
from lineas.evaluation.picture_measures import PicturePlan, evaluate_pictures
from lineas.evaluation.results import BATCH, Plan, Row
from lineas.evaluation.variants import Steered, Untouched
from lineas.models.image import ImageModel


@dataclass(frozen=True)
class Measures:
    """What is measured at every point, by names alone.

    Args:
        prompts: texts to continue, or what to draw.
        neutral: sentences whose perplexity should stay.
        classifiers: of continuations: by column, a name that `evaluation.classifiers.classifier` knows.
        concept: of pictures: what is looked for in them.
        judge: of pictures; None for the model's own, or CLIP.
        seeds: sampling seeds of every point.
        sampling: arguments of `TextModel.generate`; BATCH prompts together where it does not say how many.
    """

    prompts: Sequence[str] = ()
    neutral: Sequence[str] = ()
    classifiers: dict[str, str] = field(default_factory=dict)
    concept: str | None = None
    judge: str | None = None
    seeds: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of all that can be measured; `clip_score` by judges of the kind of CLIP alone."""
        if self.concept is not None:
            return ["concept", "img_score", "clip_score"]
        judged = [name for column in self.classifiers for name in (column, f"{column}_score")]
        looked_at = ["distinct_1", "distinct_2", "distinct_3", "repetition", "empty"]
        return [*(judged + looked_at if self.prompts else ()), *(("perplexity", "kl") if self.neutral else ())]

    def of(self, model: Any, system: Steered | Untouched, folder: Path) -> Row:
        """Measure a system; what is kept of texts and pictures lies in the folder."""
        if isinstance(model, ImageModel):
            if self.concept is None:
                raise LineasError(f"{model.name} draws images; name what to look for in them with --shows.")
            chosen = judge(self.judge or model.judge or "clip")
            drawn = PicturePlan(self.prompts, self.concept, chosen, range(self.seeds))
            return evaluate_pictures(model, [system], drawn, folder).rows[0]
        if self.concept is not None:
            raise LineasError(f"{model.name} writes text and draws nothing; leave out --shows, which is of pictures.")
        known = {name: classifier(what) for name, what in self.classifiers.items()}
        sampling = {"batch_size": BATCH, **self.sampling}
        plan = Plan(self.prompts, self.neutral, known, range(self.seeds), sampling)
        return evaluate(model, [system], plan, folder).rows[0]
