"""`evaluate`: effect and damage of several variants of a model, measured on the same prompts, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation import picture_measures, text_measures
from lineas.evaluation.picture_measures import PictureMeasures
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Evaluation, Row
from lineas.evaluation.text_measures import TextMeasures
from lineas.evaluation.variants import Steered, System, Untouched, check_systems, of_interventions
from lineas.intervention.intervention import Intervention
from lineas.models.digests import reading_weights_once
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering.exclusive import exclusively


@exclusively
def evaluate(
    model: TextModel | ImageModel,
    systems: Mapping[str, Intervention] | Sequence[System],
    plan: Plan,
    cache: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    strengths: float | Sequence[float] = (0.0, 1.0),
) -> Evaluation:
    """Measure every variant of a model by the same plan. A measure that fails is noted and loses no other.

    Of pictures, `concept` is the probability that one shows the concept, and with CLIP `clip_score` its CLIPScore: the
    effect. `img_score` is the cosine of a picture's features with those of the untouched model's picture of the same
    prompt and noise, in percent: what is left of the picture (arXiv 2503.10679, section 4.3).

    What is cached is taken again only for the same bytes of weights, the same configuration, tokenizer and settings of
    generation, the same data and versions. With the variable LINEAS_DEBUG, what fails ends the evaluation with its
    traceback.

    Args:
        model: untouched text or image model.
        systems: variants that are judged, those at strength 0 being the untouched model; or interventions by name,
            each of which is judged at all `strengths`.
        plan: what is measured.
        cache: folder for parts that are done, so that an interrupted evaluation goes on there; None for none.
        progress: called with the number of prompts continued or drawn, or read from an earlier run.
        strengths: strengths of interventions that are given by name; 0 is the untouched model.

    Raises:
        LineasError: when there is no system, one does not fit the model, or somebody steers it already.
    """
    if not isinstance(model, (TextModel, ImageModel)):
        raise LineasError(f"evaluate judges a TextModel or an ImageModel, not a {type(model).__name__}.")
    if not isinstance(plan, Plan):
        raise LineasError(f"what is measured is a Plan, not a {type(plan).__name__}.")
    if isinstance(systems, Mapping):
        systems = of_interventions(systems, strengths)
    check_systems(systems, (Untouched, Steered) if isinstance(model, ImageModel) else ())
    if len(systems) > 1:
        for system in systems:
            with system.applied(model):  # what does not fit is said before hours of measuring
                pass
    with reading_weights_once():
        measures: PictureMeasures | TextMeasures
        if isinstance(model, ImageModel):
            measures = PictureMeasures(model, plan, cache, progress)
        else:
            measures = TextMeasures(model, plan, cache, progress)
        rows, continuations = [], []
        for system in systems:
            judged = Untouched() if system.strength == 0 else system
            row = Row(system.name, system.strength, identity=judged.identity())
            with judged.applied(model) as change:
                continuations.append(measures.measure(row, judged, change))
            rows.append(row)
        return Evaluation(rows, continuations, measures.facts)


def settings_of(
    model: TextModel | ImageModel, systems: Sequence[System], plan: Plan, apart: Path | None = None
) -> dict[str, Any]:
    """Return everything an evaluation was asked for, as JSON holds it: equal for the same evaluation alone.

    Args:
        model: text or image model.
        systems: variants that are judged.
        plan: what is measured.
        apart: a folder of results, which is no part of the tasks, though it may lie among them.
    """
    judged = [{"name": system.name, "strength": system.strength, **system.identity()} for system in systems]
    if isinstance(model, ImageModel):
        return {**picture_measures.settings(model, plan), "batch_size": plan.batch_size, "systems": judged}
    return {
        "model": model.name,
        **text_measures.settings(plan, plan.loaded_classifiers(), apart),
        "systems": judged,
    }
