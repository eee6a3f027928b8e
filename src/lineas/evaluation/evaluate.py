"""Effect and damage of several systems at several strengths, measured on the same prompts, resumable."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lineas.errors import LineasError, first_line
from lineas.evaluation import picture_measures, text_measures
from lineas.evaluation.classifiers import Classifier
from lineas.evaluation.lm_harness import run_tasks
from lineas.evaluation.perplexity import damages, perplexities
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import ResultCache, digest_of
from lineas.evaluation.results import Evaluation, Row
from lineas.evaluation.statistics import interval
from lineas.evaluation.task_files import what_tasks_need
from lineas.evaluation.variants import System, Untouched, check_systems, of_interventions
from lineas.intervention.intervention import Intervention
from lineas.models.digests import weights_digest
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.models.untouched import Unknowable
from lineas.steering.exclusive import exclusively
from lineas.versions import stamp

LOG = logging.getLogger(__name__)
YES = 0.5
"""A text shows a concept when its classifier gives this or more."""


@exclusively
def evaluate(
    model: TextModel | ImageModel,
    systems: Mapping[str, Intervention] | Sequence[System],
    plan: Plan,
    cache: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    strengths: Sequence[float] = (0.0, 1.0),
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
    if isinstance(model, ImageModel):
        return picture_measures.evaluate_pictures(model, systems, plan, cache, progress)
    if plan.concept is not None:
        raise LineasError(
            f"{model.name} writes text and draws nothing; leave out the concept (--shows), which is of pictures."
        )
    return _evaluate_texts(model, systems, plan, cache, progress)


def _evaluate_texts(
    model: TextModel,
    systems: Sequence[System],
    plan: Plan,
    folder: str | Path | None,
    progress: Callable[[int], None] | None,
) -> Evaluation:
    check_systems(systems)
    for system in systems:
        with system.applied(model):  # what does not fit is said before hours of measuring
            pass
    classifiers = plan.loaded_classifiers()
    cache = ResultCache.of_model(folder, model)
    asked = _of_plan(plan, classifiers, None if folder is None else Path(folder))
    rows, continuations = [], []
    for system in systems:
        judged = Untouched() if system.strength == 0 else system
        row = Row(system.name, system.strength, identity=judged.identity())
        made: list[list[str]] = []
        if plan.prompts:
            _try(row, "continuations", _continue, made, model, judged, plan, cache, progress)
        if made:
            for name, judge in classifiers.items():
                _try(row, name, _classify, row, name, judge, made)
            _look(row, made)
        if plan.neutral:
            damage: dict[str, list[float]] = {}
            _try(row, "perplexity", _damage, damage, model, judged, plan, cache)
            for measure, values in damage.items():
                _try(row, measure, _add, row, measure, values)
            if not damage:
                row.errors["kl"] = row.errors["perplexity"]  # measured in the same passes
        for task in plan.tasks:
            _try(row, task, _task, row, model, judged, plan, task, asked["tasks"], cache)
        rows.append(row)
        continuations.append(made)
    facts = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        **asked,
        "weights": _weights(model),
        "revision": model.revision,
        **stamp(),
    }
    return Evaluation(rows, continuations, facts)


def settings_of(
    model: TextModel | ImageModel, systems: Sequence[System], plan: Plan, apart: Path | None = None
) -> dict[str, Any]:
    """Return everything an evaluation was asked for, as JSON holds it: equal for the same evaluation alone.

    Args:
        model: text or image model.
        systems: what is judged.
        plan: what is measured.
        apart: a folder of results, which is no part of the tasks, though it may lie among them.
    """
    judged = [{"name": system.name, "strength": system.strength, **system.identity()} for system in systems]
    if isinstance(model, ImageModel):
        return {**picture_measures.asked(model, plan), "batch_size": plan.batch_size, "systems": judged}
    return {"model": model.name, **_of_plan(plan, plan.loaded_classifiers(), apart), "systems": judged}


def _of_plan(plan: Plan, classifiers: Mapping[str, Classifier], apart: Path | None) -> dict[str, Any]:
    return {
        **plan.described(),
        "classifiers": {name: getattr(one, "__name__", str(one)) for name, one in classifiers.items()},
        "tasks": {**what_tasks_need(plan, apart), "names": list(plan.tasks)},
    }


def _weights(model: TextModel) -> str | None:
    """The digest of a model's weights, where all are there to be read."""
    try:
        return weights_digest(model.network)
    except Unknowable:
        return None


def _try(row: Row, measure: str, run: Callable[..., None], *arguments: Any) -> None:
    try:
        run(*arguments)
    except Exception as error:  # whatever it is, the other measures go on
        known = isinstance(error, LineasError)
        if not known and os.environ.get("LINEAS_DEBUG"):
            raise
        LOG.debug("%s could not be measured", measure, exc_info=True)
        first = first_line(error)
        row.errors[measure] = str(error).strip().splitlines()[0] if known else f"{type(error).__name__}: {first}"


def _continue(
    made: list[list[str]],
    model: TextModel,
    system: System,
    plan: Plan,
    cache: ResultCache,
    progress: Callable[[int], None] | None,
) -> None:
    """Add every seed's continuations, or none."""
    made += [_continued(model, system, plan, seed, cache, progress) for seed in plan.seeds]


def _continued(
    model: TextModel,
    system: System,
    plan: Plan,
    seed: int,
    cache: ResultCache,
    progress: Callable[[int], None] | None,
) -> list[str]:
    def generate() -> list[str]:
        with system.applied(model):
            prefixed = [system.prefix + prompt for prompt in plan.prompts]
            return model.generate(prefixed, **plan.sampling, seed=seed, progress=progress)

    def fits(result: Any) -> bool:
        return len(result) == len(plan.prompts) and all(isinstance(text, str) for text in result)

    what = _asked("continuations", system) | {"seed": seed, "sampling": dict(plan.sampling)}
    made, was_there = cache.get_or_make(what | {"prompts": digest_of(plan.prompts)}, generate, fits)
    if was_there and progress:
        progress(len(made))
    return made


def _asked(part: str, system: System) -> dict[str, Any]:
    """Return what every part of a system depends on."""
    return {"part": part, **system.identity(), "prefix": system.prefix}


def _classify(row: Row, name: str, judge: Classifier, made: list[list[str]]) -> None:
    by_seed = [judge(texts) for texts in made]
    said_yes = [[float(score >= YES) for score in scores] for scores in by_seed]
    for column, values in ((name, said_yes), (f"{name}_score", by_seed)):
        row.by_seed[column] = [mean(one) for one in values]
        row.values[column] = mean(row.by_seed[column])
        row.intervals[column] = interval([mean(one) for one in zip(*values)])  # a prompt's seeds belong together


def _look(row: Row, made: list[list[str]]) -> None:
    everything = [text for texts in made for text in texts]
    for n in (1, 2, 3):
        row.values[f"distinct_{n}"] = mean(text_measures.distinct(texts, n) for texts in made)
    row.values["repetition"] = text_measures.repetition(everything)
    row.values["empty"] = text_measures.empty(everything)


def _damage(damage: dict[str, list[float]], model: TextModel, system: System, plan: Plan, cache: ResultCache) -> None:
    """Fill in the perplexity of every neutral sentence, and the divergence from the untouched model on it."""

    def measure() -> dict[str, list[float]]:
        if isinstance(system, Untouched):
            found = perplexities(model, plan.neutral, plan.max_length)
            return {"perplexity": found, "kl": [0.0] * len(found)}
        found, apart = damages(model, lambda: system.applied(model), plan.neutral, plan.max_length, system.prefix)
        return {"perplexity": found, "kl": apart}

    def fits(result: Any) -> bool:
        return result.keys() == {"perplexity", "kl"} and all(_are_numbers(values) for values in result.values())

    what = _asked("damage", system) | {"neutral": digest_of(plan.neutral), "max_length": plan.max_length}
    damage.update(cache.get_or_make(what, measure, fits)[0])


def _task(
    row: Row, model: TextModel, system: System, plan: Plan, task: str, depends: dict[str, Any], cache: ResultCache
) -> None:
    def measure() -> dict[str, Any]:
        with system.applied(model):
            return run_tasks(model, [task], plan.task_path, plan.task_limit, system.prefix, plan.fewshot)[task]

    def fits(result: Any) -> bool:
        error = result["error"]
        return isinstance(result["metric"], str) and _are_numbers([result["value"], 0.0 if error is None else error])

    result, _ = cache.get_or_make(_asked("task", system) | {"task": task, **depends, "names": None}, measure, fits)
    row.values[task] = result["value"]
    row.metrics[task] = result["metric"]
    if result["error"] is not None:
        row.intervals[task] = (result["value"] - 1.96 * result["error"], result["value"] + 1.96 * result["error"])


def _are_numbers(values: Any) -> bool:
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _add(row: Row, column: str, values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        count = sum(not math.isfinite(value) for value in values)
        raise LineasError(f"it is not finite on {count} of {len(values)} sentences; the model is destroyed.")
    row.values[column] = mean(values)
    row.intervals[column] = interval(values)
