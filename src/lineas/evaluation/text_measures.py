"""The measures of a text model: its continuations judged, perplexity and divergence, tasks; each part is cached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.classifiers import Classifier
from lineas.evaluation.lm_harness import run_tasks
from lineas.evaluation.perplexity import damages, perplexities
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import ResultCache, digest_of
from lineas.evaluation.results import Row
from lineas.evaluation.task_files import what_tasks_need
from lineas.evaluation.variants import Change, System, Untouched
from lineas.evaluation.variety import distinct, empty, repetition
from lineas.models.digests import weights_digest
from lineas.models.text import TextModel
from lineas.models.untouched import Unknowable
from lineas.modules import type_name
from lineas.versions import stamp

YES = 0.5
"""A text shows a concept when its classifier gives this or more."""


class TextMeasures:
    """What a plan measures of a text model.

    Args:
        model: untouched text model.
        plan: the measurements to make.
        folder: folder for parts that are done; None for none.
        progress: called with the number of prompts continued, or read from an earlier run.

    Raises:
        LineasError: when the plan is about pictures, or a classifier cannot be loaded.
    """

    def __init__(
        self, model: TextModel, plan: Plan, folder: str | Path | None, progress: Callable[[int], None] | None
    ) -> None:
        if plan.concept is not None:
            raise LineasError(
                f"{model.name} writes text and draws nothing; leave out the concept (--shows), which is of pictures."
            )
        self._model, self._plan, self._progress = model, plan, progress
        self._classifiers = plan.loaded_classifiers()
        self._cache = ResultCache.of_model(folder, model)
        self._asked = settings(plan, self._classifiers, None if folder is None else Path(folder))

    @property
    def facts(self) -> dict[str, Any]:
        """What is needed to measure the same again."""
        model = self._model
        try:
            weights = weights_digest(model.network)
        except Unknowable:  # some are not there to be read
            weights = None
        about = {"weights": weights, "revision": model.revision, **stamp()}
        return {"model": model.name, "dtype": type_name(model.dtype), **self._asked, **about}

    def measure(self, row: Row, system: System, change: Change) -> list[list[str]]:
        """Fill a row with all measures of the model as it is now; a measure that fails is noted there.

        Args:
            row: the row of the system.
            system: what the model is now.
            change: how the model is put back for a while.

        Returns:
            the continuations, a list for each seed.
        """
        plan, made = self._plan, []
        if plan.prompts:
            with row.noting("continuations"):
                made = [self._continuations(system, seed) for seed in plan.seeds]
        if made:
            for name, judge in self._classifiers.items():
                with row.noting(name):
                    _judge(row, name, judge, made)
            _describe(row, made)
        if plan.neutral:
            self._damage(row, system, change)
        for task in plan.tasks:
            with row.noting(task):
                self._task(row, system, task)
        return made

    def _continuations(self, system: System, seed: int) -> list[str]:
        plan = self._plan

        def generate() -> list[str]:
            prefixed = [system.prefix + prompt for prompt in plan.prompts]
            return self._model.generate(prefixed, **plan.sampling, seed=seed, progress=self._progress)

        def fits(result: Any) -> bool:
            return len(result) == len(plan.prompts) and all(isinstance(text, str) for text in result)

        key = _key("continuations", system) | {"seed": seed, "sampling": dict(plan.sampling)}
        made, was_cached = self._cache.get_or_make(key | {"prompts": digest_of(plan.prompts)}, generate, fits)
        if was_cached and self._progress:
            self._progress(len(made))
        return made

    def _damage(self, row: Row, system: System, change: Change) -> None:
        """Measure the perplexity of every neutral sentence, and the divergence from the untouched model on it."""
        plan, damage = self._plan, {}

        def measure() -> dict[str, list[float]]:
            if isinstance(system, Untouched):
                found = perplexities(self._model, plan.neutral, plan.max_length)
                return {"perplexity": found, "kl": [0.0] * len(found)}
            found, apart = damages(self._model, change, plan.neutral, plan.max_length, system.prefix)
            return {"perplexity": found, "kl": apart}

        def fits(result: Any) -> bool:
            return result.keys() == {"perplexity", "kl"} and all(_are_numbers(values) for values in result.values())

        with row.noting("perplexity", "kl"):  # both are measured in the same passes
            key = _key("damage", system) | {"neutral": digest_of(plan.neutral), "max_length": plan.max_length}
            damage = self._cache.get_or_make(key, measure, fits)[0]
        for name, values in damage.items():
            with row.noting(name):
                _add(row, name, values)

    def _task(self, row: Row, system: System, task: str) -> None:
        plan = self._plan

        def measure() -> dict[str, Any]:
            found = run_tasks(self._model, [task], plan.task_path, plan.task_limit, system.prefix, plan.fewshot)
            return found[task]

        def fits(result: Any) -> bool:
            numbers = [result["value"], *([] if result["error"] is None else [result["error"]])]
            return isinstance(result["metric"], str) and _are_numbers(numbers)

        key = _key("task", system) | {"task": task, **self._asked["tasks"], "names": None}
        result, _ = self._cache.get_or_make(key, measure, fits)
        value, error = result["value"], result["error"]
        row.values[task], row.metrics[task] = value, result["metric"]
        if error is not None:
            row.intervals[task] = (value - 1.96 * error, value + 1.96 * error)


def settings(plan: Plan, classifiers: Mapping[str, Classifier], apart: Path | None) -> dict[str, Any]:
    """Return what a plan measures of texts as JSON holds it.

    Args:
        plan: the measurements to make.
        classifiers: the plan's, loaded.
        apart: a folder of results, which is no part of the tasks, though it may lie among them.
    """
    return {
        **plan.described(),
        "classifiers": {name: getattr(one, "__name__", str(one)) for name, one in classifiers.items()},
        "tasks": {**what_tasks_need(plan, apart), "names": list(plan.tasks)},
    }


def _key(part: str, system: System) -> dict[str, Any]:
    """Return what every part of a system depends on."""
    return {"part": part, **system.identity(), "prefix": system.prefix}


def _judge(row: Row, name: str, judge: Classifier, made: Sequence[list[str]]) -> None:
    by_seed = [judge(texts) for texts in made]
    said_yes = [[float(score >= YES) for score in scores] for scores in by_seed]
    for column, values in ((name, said_yes), (f"{name}_score", by_seed)):
        row.take_by_seed(column, values)


def _describe(row: Row, made: Sequence[list[str]]) -> None:
    everything = [text for texts in made for text in texts]
    for n in (1, 2, 3):
        row.values[f"distinct_{n}"] = mean(distinct(texts, n) for texts in made)
    row.values["repetition"] = repetition(everything)
    row.values["empty"] = empty(everything)


def _are_numbers(values: Any) -> bool:
    return bool(values) and all(isinstance(value, (int, float)) for value in values)


def _add(row: Row, column: str, values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        count = sum(not math.isfinite(value) for value in values)
        raise LineasError(f"it is not finite on {count} of {len(values)} sentences; the model is destroyed.")
    row.take(column, values)
