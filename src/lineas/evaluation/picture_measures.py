"""Effect and faithfulness of interventions on pictures, at several strengths, for the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from lineas.checks import as_texts
from lineas.errors import LineasError
from lineas.evaluation.judges import PictureJudge
from lineas.evaluation.result_cache import ResultCache, digest_of
from lineas.evaluation.results import SEEDS, Evaluation, Row, seeds_of
from lineas.evaluation.statistics import interval
from lineas.evaluation.variants import Steered, Untouched, check_systems
from lineas.models.digests import known
from lineas.models.image import ImageModel
from lineas.prompts import described
from lineas.steering.exclusive import exclusively
from lineas.versions import stamp


@dataclass(frozen=True)
class PicturePlan:
    """What is drawn and how it is judged, the same for every system.

    Args:
        prompts: what to draw.
        concept: what is looked for in the pictures, in words that the judge knows.
        judge: of concept and likeness.
        seeds: of the noise; the prompts' own are counted on from each.
        batch_size: pictures drawn together.

    Raises:
        LineasError: when something is of another type, or makes no sense.
    """

    prompts: Sequence[str]
    concept: str
    judge: PictureJudge
    seeds: Sequence[int] = (0,)
    batch_size: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(as_texts("prompts", self.prompts)))
        object.__setattr__(self, "seeds", seeds_of(self.seeds))
        if not self.prompts:
            raise LineasError("measuring needs at least one prompt to draw and one seed.")
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise LineasError(f"the concept that is looked for is a text, not {self.concept!r}.")
        lacks = [name for name in ("name", "scores", "features") if not hasattr(self.judge, name)]
        if isinstance(self.judge, (str, type)) or lacks:
            raise LineasError(f"pictures are judged by what judge(NAME) gives, not by {self.judge!r}.")
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise LineasError(f"batch_size is a whole number of at least 1, not {self.batch_size!r}.")
        for seed in self.seeds:
            if self.first_seed(seed) not in SEEDS or self.first_seed(seed + 1) not in SEEDS:
                raise LineasError(
                    f"with {len(self.prompts)} prompts the seed {seed} leads beyond those that torch takes."
                )

    def first_seed(self, seed: int) -> int:
        """The noise of the first prompt; those of the others are counted on."""
        return seed * len(self.prompts)


@exclusively
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

    What is kept is taken again only for the same bytes of weights in every part of the pipeline, the same settings of
    each, the same judge (its weights too), data and versions.

    Args:
        model: untouched.
        systems: what is judged; those at strength 0 are the untouched model.
        plan: what is drawn.
        folder: where what was seen in pictures is kept, so that the same ones are not drawn again.
        progress: called with the number of pictures drawn, or seen in an earlier run.

    Raises:
        LineasError: when there is no system, one does not fit the model, somebody steers it already, or the judge does
            not know the concept.
    """
    if not isinstance(model, ImageModel):
        raise LineasError(f"evaluate_pictures judges an ImageModel, not a {type(model).__name__}.")
    if not isinstance(plan, PicturePlan):
        raise LineasError(f"what is drawn is a PicturePlan, not a {type(plan).__name__}.")
    check_systems(systems, (Untouched, Steered))
    for system in systems:
        with system.applied(model):  # what does not fit is said before anything is drawn
            pass
    plan.judge.scores(torch.zeros(1, 3, 64, 64), plan.concept)
    cache = ResultCache.of_model(folder, model, judge=lambda: known(plan.judge))
    before = [_seen(model, Untouched(), plan, seed, cache, progress) for seed in plan.seeds]
    rows = []
    for system in systems:
        row = Row(system.name, system.strength, identity=system.identity())
        after = before
        if system.strength != 0:
            try:
                after = [_seen(model, system, plan, seed, cache, progress) for seed in plan.seeds]
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
    return Evaluation(rows, [], {**_asked(model, plan), **stamp()})


def settings_of_pictures(
    model: ImageModel, systems: Sequence[Steered | Untouched], plan: PicturePlan
) -> dict[str, Any]:
    """Return everything an evaluation of pictures was asked for, as JSON holds it."""
    judged = [{"name": system.name, "strength": system.strength, **system.identity()} for system in systems]
    return {**_asked(model, plan), "batch_size": plan.batch_size, "systems": judged}


def _asked(model: ImageModel, plan: PicturePlan) -> dict[str, Any]:
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": described(plan.prompts),
        "seeds": list(plan.seeds),
        "concept": plan.concept,
        "judge": plan.judge.name,
        **model.facts,
    }


def _seen(
    model: ImageModel,
    system: Steered | Untouched,
    plan: PicturePlan,
    seed: int,
    cache: ResultCache,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    """What the judge sees in pictures: scores, a list each, and features, `[n][d]`."""

    def look() -> dict[str, Any]:
        with system.applied(model):
            made = model.generate(
                plan.prompts, plan.first_seed(seed), plan.batch_size, progress, output_type="pt"
            )  # from 0 to 1
        pictures = torch.stack(made).float().cpu()
        features = plan.judge.features(pictures).float().tolist()
        return {"scores": plan.judge.scores(pictures, plan.concept), "features": features}

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
