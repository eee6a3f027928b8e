"""`evaluate`: measure effect and damage of several systems on the same prompts; it can go on after an interruption."""

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
from lineas.evaluation.variants import Steered, System, Untouched, check_systems, systems_of
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
    """Measure every system by the same plan. If a measure fails, the reason is noted and the others go on.

    For pictures, the effect is `concept`, the probability that a picture shows the concept, and with CLIP also
    `clip_score`, its CLIPScore. The damage is `img_score`, the cosine in percent between the features of a picture and
    those of the untouched model's picture of the same prompt and noise (arXiv 2503.10679, section 4.3).

    A cached result is used only for the same bytes of weights, configuration, tokenizer, settings of generation, data
    and versions. With the environment variable LINEAS_DEBUG, an error of a library ends the evaluation at once.

    Args:
        model: untouched text or image model.
        systems: systems to judge; or interventions by name, each of which is judged at all `strengths`.
        plan: measurements to make.
        cache: folder for finished parts, from which an interrupted evaluation goes on; None for no cache.
        progress: function that is called with the number of prompts continued, drawn, or read from the cache.
        strengths: strengths of interventions given by name, 0 being the untouched model; default: 0 and 1.

    Raises:
        LineasError: when there is no system, one does not fit the model, or the model is being steered already.
    """
    if not isinstance(model, (TextModel, ImageModel)):
        raise LineasError(f"evaluate judges a TextModel or an ImageModel, not a {type(model).__name__}.")
    if not isinstance(plan, Plan):
        raise LineasError(f"what to measure is a Plan, not a {type(plan).__name__}.")
    if isinstance(systems, Mapping):
        systems = systems_of(systems, strengths)
    check_systems(systems, (Untouched, Steered) if isinstance(model, ImageModel) else ())
    if len(systems) > 1:
        for system in systems:
            with system.applied(model):  # refuse one that does not fit before hours of measuring
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
    model: TextModel | ImageModel, systems: Sequence[System], plan: Plan, excluded: Path | None = None
) -> dict[str, Any]:
    """Return all settings of an evaluation as JSON, which are equal only for the same evaluation.

    `excluded` is a folder of results, which is ignored if it is in the folder of task files.
    """
    judged = [{"name": system.name, "strength": system.strength, **system.identity()} for system in systems]
    if isinstance(model, ImageModel):
        return {**picture_measures.settings(model, plan), "batch_size": plan.batch_size, "systems": judged}
    measured = text_measures.settings(plan, plan.loaded_classifiers(), excluded)
    return {"model": model.name, **measured, "systems": judged}
