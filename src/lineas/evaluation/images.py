"""Effect and faithfulness of interventions on pictures, at several strengths, for the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from lineas.alone import undisturbed
from lineas.errors import LineasError
from lineas.evaluation.judges import PictureJudge
from lineas.evaluation.kept import Kept
from lineas.evaluation.records import Evaluation, Row
from lineas.evaluation.run import weights_digest
from lineas.evaluation.statistics import interval
from lineas.evaluation.systems import Steered, Untouched
from lineas.models.image import ImageModel
from lineas.prompts import described
from lineas.stamp import packages, stamp


@dataclass(frozen=True)
class PicturePlan:
    """What is drawn and how it is judged, the same for every system.

    Args:
        prompts: what to draw.
        concept: what is looked for in the pictures, in words that the judge knows.
        judge: of concept and likeness.
        seeds: of the noise; the prompts' own are counted on from each.
        batch_size: pictures drawn together.
    """

    prompts: Sequence[str]
    concept: str
    judge: PictureJudge
    seeds: Sequence[int] = (0,)
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.prompts or not self.seeds:
            raise LineasError("measuring needs at least one prompt to draw and one seed.")


@undisturbed
def evaluate_pictures(
    model: ImageModel,
    systems: Sequence[Steered | Untouched],
    plan: PicturePlan,
    folder: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure every system by the same plan.

    `concept` is the probability that a picture shows the concept, and with CLIP `clip_score` its CLIPScore: the effect.
    `img_score` is the cosine of a picture's features with those of the untouched model's picture of the same prompt and
    noise, in percent: what is left of the picture (arXiv 2503.10679, section 4.3).

    Args:
        model: untouched.
        systems: what is judged; those at strength 0 are the untouched model.
        plan: what is drawn.
        folder: where what was seen in pictures is kept, so that the same ones are not drawn again.
        progress: called with the number of pictures drawn, or seen in an earlier run.

    Raises:
        LineasError: when there is no system, one does not fit the model, or the judge does not know the concept.
    """
    if not systems:
        raise LineasError("there is nothing to judge; give at least one system or strength.")
    for system in systems:
        with system.applied(model):  # what does not fit is said before anything is drawn
            pass
    plan.judge.scores(torch.zeros(1, 3, 64, 64), plan.concept)
    of = {} if folder is None else {"network": weights_digest(model), **model.facts, **packages()}
    kept = Kept(folder, {**of, "dtype": str(model.dtype)})
    before = [_seen(model, Untouched(), plan, seed, kept, progress) for seed in plan.seeds]
    rows = []
    for system in systems:
        row = Row(system.name, system.strength, identity=system.identity())
        after = before
        if system.strength != 0:
            after = [_seen(model, system, plan, seed, kept, progress) for seed in plan.seeds]
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
    facts: dict[str, Any] = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": described(plan.prompts),
        "seeds": list(plan.seeds),
        "concept": plan.concept,
        "judge": plan.judge.name,
        **model.facts,
        **stamp(),
    }
    return Evaluation(rows, [], facts)


def _seen(
    model: ImageModel,
    system: Steered | Untouched,
    plan: PicturePlan,
    seed: int,
    kept: Kept,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """What the judge sees in pictures: scores, a list each, and features, `[n][d]`."""

    def look() -> dict[str, Any]:
        with system.applied(model):
            made = model.generate(
                plan.prompts, seed * len(plan.prompts), plan.batch_size, progress, output_type="pt"
            )  # from 0 to 1
        pictures = torch.stack(made).float().cpu()
        features = plan.judge.features(pictures).float().tolist()
        return {"scores": plan.judge.scores(pictures, plan.concept), "features": features}

    what = {"part": "pictures", **system.identity(), "seed": seed, "batch_size": plan.batch_size}
    what |= {"concept": plan.concept, "judge": [plan.judge.name, repr(plan.judge)], "prompts": described(plan.prompts)}
    seen, was_there = kept.get(what, look)
    if was_there and progress:
        progress(len(plan.prompts))
    return seen
