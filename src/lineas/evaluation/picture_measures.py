"""The measures of an image model: how much its pictures show a concept, and how much they stay alike."""

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
from lineas.models.digests import describe_part
from lineas.models.image import ImageModel
from lineas.modules import type_name
from lineas.prompts import described
from lineas.versions import stamp


class PictureMeasures:
    """The measures of a plan on an image model; see `evaluate`.

    A cached result is used only for the same weights and settings of every part of the pipeline, the same judge with
    its weights, data and versions.
    """

    def __init__(
        self, model: ImageModel, plan: Plan, folder: str | Path | None, progress: Callable[[int], None] | None
    ) -> None:
        if plan.concept is None:
            raise LineasError(
                f"{model.name} draws images; name the concept to look for in them with --shows TEXT (concept=...)."
            )
        self._model, self._plan, self._progress, self._concept = model, plan, progress, plan.concept
        self._judge = judge_of(model, plan)
        self._judge.scores(torch.zeros(1, 3, 64, 64), plan.concept)
        self._cache = ResultCache.of_model(folder, model, judge=lambda: describe_part(self._judge))
        self._untouched = [self._scores_and_features(Untouched(), seed) for seed in plan.seeds]

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that are needed to repeat the measurements."""
        return {**settings(self._model, self._plan), **stamp()}

    def measure(self, row: Row, system: System, change: Change) -> list[list[str]]:
        """Fill a row with all measures of the model as it is now; there are no continuations to return."""
        before = after = self._untouched
        if not isinstance(system, Untouched):
            after = []
            with row.noting(*before[0]["scores"], "img_score"):  # this strength may destroy the model
                after = [self._scores_and_features(system, seed) for seed in self._plan.seeds]
        measured = [
            {**now["scores"], "img_score": _likeness(now["features"], was["features"])}
            for now, was in zip(after, before)
        ]
        for name in measured[0] if measured else ():
            row.take_by_seed(name, [one[name] for one in measured])
        return []

    def _scores_and_features(self, system: System, seed: int) -> dict[str, Any]:
        """Return the judge's scores of n pictures, `[n]` by measure, and their features, `[n][d]`."""
        model, plan = self._model, self._plan

        def draw_and_judge() -> dict[str, Any]:
            first_seed = plan.first_seed(seed)
            pictures = model.generate(plan.prompts, first_seed, plan.batch_size, self._progress, output_type="pt")
            pixels = torch.stack(pictures).float().cpu()  # [n, 3, h, w], from 0 to 1
            features = self._judge.features(pixels).float().tolist()
            return {"scores": self._judge.scores(pixels, self._concept), "features": features}

        def fits(result: Any) -> bool:
            lists = [result["features"], *result["scores"].values()]
            return len(lists) > 1 and all(len(values) == len(plan.prompts) for values in lists)

        key = {"part": "pictures", **system.identity(), "seed": seed, "batch_size": plan.batch_size}
        key |= {"concept": plan.concept, "prompts": digest_of(plan.prompts)}
        result, was_cached = self._cache.get_or_make(key, draw_and_judge, fits)
        if was_cached and self._progress:
            self._progress(len(plan.prompts))
        return result


def judge_of(model: ImageModel, plan: Plan) -> PictureJudge:
    """Return the judge of a plan; by default the model's own, or else CLIP."""
    judge_or_name = plan.judge or model.judge or "clip"
    return judge(judge_or_name) if isinstance(judge_or_name, str) else judge_or_name


def settings(model: ImageModel, plan: Plan) -> dict[str, Any]:
    """Return the settings of a plan for pictures as JSON."""
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
    """Return the cosine in percent between the features of each picture and of the untouched model's picture."""
    return (100 * torch.cosine_similarity(torch.tensor(features), torch.tensor(untouched))).tolist()
