"""The measures of an image model: how much its pictures show a concept, and how much of them is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lineas.errors import LineasError
from lineas.evaluation.judges import PictureJudge, judge
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import ResultCache, digest_of
from lineas.evaluation.results import Row
from lineas.evaluation.variants import Change, System, Untouched
from lineas.models.digests import known
from lineas.models.image import ImageModel
from lineas.modules import type_name
from lineas.prompts import described
from lineas.versions import stamp


class PictureMeasures:
    """What a plan measures of an image model; see `evaluate`.

    What is cached is taken again only for the same bytes of weights in every part of the pipeline, the same settings
    of each, the same judge (its weights too), data and versions.

    Args:
        model: untouched image model.
        plan: the measurements to make.
        folder: folder for parts that are done; None for none.
        progress: called with the number of pictures drawn, or read from an earlier run.

    Raises:
        LineasError: when the plan names no concept, or the judge does not know it.
    """

    def __init__(
        self, model: ImageModel, plan: Plan, folder: str | Path | None, progress: Callable[[int], None] | None
    ) -> None:
        if plan.concept is None:
            raise LineasError(
                f"{model.name} draws images; name what to look for in them with Plan(concept=...), --shows on the "
                "command line."
            )
        self._model, self._plan, self._progress, self._concept = model, plan, progress, plan.concept
        self._judge = judge_of(model, plan)
        self._judge.scores(torch.zeros(1, 3, 64, 64), plan.concept)
        self._cache = ResultCache.of_model(folder, model, judge=lambda: known(self._judge))
        self._untouched = [self._seen(Untouched(), seed) for seed in plan.seeds]

    @property
    def facts(self) -> dict[str, Any]:
        """What is needed to measure the same again."""
        return {**settings(self._model, self._plan), **stamp()}

    def measure(self, row: Row, system: System, change: Change) -> list[list[str]]:
        """Fill a row with all measures of the model as it is now; a failure is noted there.

        Args:
            row: the row of the system.
            system: what the model is now.
            change: how the model would be put back for a while.

        Returns:
            no texts.
        """
        before = after = self._untouched
        if not isinstance(system, Untouched):
            after = []
            with row.noting(*before[0]["scores"], "img_score"):  # such as a model that this strength destroys
                after = [self._seen(system, seed) for seed in self._plan.seeds]
        measured = [
            {**now["scores"], "img_score": _likeness(now["features"], was["features"])}
            for now, was in zip(after, before)
        ]
        for name in measured[0] if measured else ():
            row.take_by_seed(name, [one[name] for one in measured])
        return []

    def _seen(self, system: System, seed: int) -> dict[str, Any]:
        """Return the judge's scores of pictures, a list each, and their features, `[n][d]`."""
        model, plan = self._model, self._plan

        def look() -> dict[str, Any]:
            first, together = plan.first_seed(seed), plan.batch_size
            made = model.generate(plan.prompts, first, together, self._progress, output_type="pt")  # from 0 to 1
            pictures = torch.stack(made).float().cpu()
            features = self._judge.features(pictures).float().tolist()
            return {"scores": self._judge.scores(pictures, self._concept), "features": features}

        def fits(result: Any) -> bool:
            lists = [result["features"], *result["scores"].values()]
            return len(lists) > 1 and all(len(values) == len(plan.prompts) for values in lists)

        key = {"part": "pictures", **system.identity(), "seed": seed, "batch_size": plan.batch_size}
        key |= {"concept": plan.concept, "prompts": digest_of(plan.prompts)}
        seen, was_cached = self._cache.get_or_make(key, look, fits)
        if was_cached and self._progress:
            self._progress(len(plan.prompts))
        return seen


def judge_of(model: ImageModel, plan: Plan) -> PictureJudge:
    """Return the judge of a plan, by default the model's own, or CLIP.

    Raises:
        LineasError: when there is none of its name.
    """
    given = plan.judge or model.judge or "clip"
    return judge(given) if isinstance(given, str) else given


def settings(model: ImageModel, plan: Plan) -> dict[str, Any]:
    """Return what a plan measures of pictures as JSON holds it."""
    return {
        "model": model.name,
        "dtype": type_name(model.dtype),
        "prompts": described(plan.prompts),
        "seeds": list(plan.seeds),
        "concept": plan.concept,
        "judge": judge_of(model, plan).name,
        **model.facts,
    }


def _likeness(features: list[list[float]], untouched: list[list[float]]) -> list[float]:
    """Return the cosine of each picture's features with those of the untouched model's picture, in percent."""
    return (100 * torch.cosine_similarity(torch.tensor(features), torch.tensor(untouched))).tolist()
