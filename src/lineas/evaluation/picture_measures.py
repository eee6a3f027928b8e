"""Effect and faithfulness of interventions on pictures, at several strengths, for the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from lineas.errors import LineasError
from lineas.evaluation.judges import PictureJudge, judge
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import ResultCache, digest_of
from lineas.evaluation.results import Evaluation, Row
from lineas.evaluation.statistics import interval
from lineas.evaluation.variants import Steered, Untouched, check_systems
from lineas.models.digests import known
from lineas.models.image import ImageModel
from lineas.prompts import described
from lineas.versions import stamp


def evaluate_pictures(
    model: ImageModel,
    systems: Sequence[Any],
    plan: Plan,
    folder: str | Path | None,
    progress: Callable[[int], None] | None,
) -> Evaluation:
    """Measure every variant of an image model by the same plan; see `evaluate`.

    What is cached is taken again only for the same bytes of weights in every part of the pipeline, the same settings
    of each, the same judge (its weights too), data and versions.

    Raises:
        LineasError: when there is no variant, one does not fit the model, the plan names no concept, or the judge does
            not know it.
    """
    if plan.concept is None:
        raise LineasError(
            f"{model.name} draws images; name what to look for in them with Plan(concept=...), --shows on the command "
            "line."
        )
    looks = judge_of(model, plan)
    check_systems(systems, (Untouched, Steered))
    for system in systems:
        with system.applied(model):  # what does not fit is said before anything is drawn
            pass
    looks.scores(torch.zeros(1, 3, 64, 64), plan.concept)
    cache = ResultCache.of_model(folder, model, judge=lambda: known(looks))
    before = [_seen(model, Untouched(), plan, looks, seed, cache, progress) for seed in plan.seeds]
    rows = []
    for system in systems:
        row = Row(system.name, system.strength, identity=system.identity())
        after = before
        if system.strength != 0:
            try:
                after = [_seen(model, system, plan, looks, seed, cache, progress) for seed in plan.seeds]
            except LineasError as error:  # such as a model that this strength destroys: the others are measured
                row.errors |= dict.fromkeys([*before[0]["scores"], "img_score"], str(error))
                rows.append(row)
                continue
        measures = [
            {
                **seen["scores"],
                "img_score": (
                    100 * torch.cosine_similarity(torch.tensor(seen["features"]), torch.tensor(was["features"]))
                ).tolist(),
            }
            for seen, was in zip(after, before)
        ]
        for name in measures[0]:
            row.by_seed[name] = [mean(one[name]) for one in measures]
            row.values[name] = mean(row.by_seed[name])
            row.intervals[name] = interval([mean(values) for values in zip(*(one[name] for one in measures))])
        rows.append(row)
    return Evaluation(rows, [], {**asked(model, plan), **stamp()})


def judge_of(model: ImageModel, plan: Plan) -> PictureJudge:
    """Return the judge of a plan, by default the model's own, or CLIP.

    Raises:
        LineasError: when there is none of its name.
    """
    given = plan.judge or model.judge or "clip"
    return judge(given) if isinstance(given, str) else given


def asked(model: ImageModel, plan: Plan) -> dict[str, Any]:
    """Return what an evaluation of pictures was asked for, as JSON holds it."""
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": described(plan.prompts),
        "seeds": list(plan.seeds),
        "concept": plan.concept,
        "judge": judge_of(model, plan).name,
        **model.facts,
    }


def _seen(
    model: ImageModel,
    system: Steered | Untouched,
    plan: Plan,
    looks: PictureJudge,
    seed: int,
    cache: ResultCache,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Return the judge's scores of pictures, a list each, and their features, `[n][d]`."""

    def look() -> dict[str, Any]:
        with system.applied(model):
            made = model.generate(
                plan.prompts, plan.first_seed(seed), plan.batch_size, progress, output_type="pt"
            )  # from 0 to 1
        pictures = torch.stack(made).float().cpu()
        features = looks.features(pictures).float().tolist()
        return {"scores": looks.scores(pictures, plan.concept or ""), "features": features}

    def fits(result: Any) -> bool:
        lists = [result["features"], *result["scores"].values()]
        return len(lists) > 1 and all(len(values) == len(plan.prompts) for values in lists)

    what = {"part": "pictures", **system.identity(), "seed": seed, "batch_size": plan.batch_size}
    seen, was_there = cache.get_or_make(
        what | {"concept": plan.concept, "prompts": digest_of(plan.prompts)}, look, fits
    )
    if was_there and progress:
        progress(len(plan.prompts))
    return seen
