"""The measures of a text model: classifiers on continuations, perplexity and divergence, tasks; each part is cached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from lineas.evaluation.task_files import task_dependencies
from lineas.evaluation.variants import Change, System, Untouched
from lineas.evaluation.variety import distinct, empty, repetition
from lineas.models.digests import weights_digest
from lineas.models.text import TextModel
from lineas.models.untouched import Unknowable
from lineas.modules import type_name
from lineas.versions import stamp

YES = 0.5
"""The smallest probability at which a text counts as showing the concept."""


class TextMeasures:
    """The measures of a plan on a text model, with a folder for finished parts; see `evaluate`."""

    def __init__(
        self, model: TextModel, plan: Plan, folder: str | Path | None, progress: Callable[[int], None] | None
    ) -> None:
        if plan.concept is not None:
            raise LineasError(f"{model.name} is a language model and draws no images; leave out --shows (concept=...).")
        self._model, self._plan, self._progress = model, plan, progress
        self._classifiers = plan.loaded_classifiers()
        self._cache = ResultCache.of_model(folder, model)
        self._settings = settings(plan, self._classifiers, None if folder is None else Path(folder))

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that are needed to repeat the measurements."""
        model, weights = self._model, None
        with suppress(Unknowable):  # some weights are not in memory
            weights = weights_digest(model.network)
        about = {"weights": weights, "revision": model.revision, **stamp()}
        return {"model": model.name, "dtype": type_name(model.dtype), **self._settings, **about}

    def measure(self, row: Row, system: System, change: Change) -> list[list[str]]:
        """Fill a row with all measures of the model as it is now, and return the continuations for each seed.

        The reason of a failure is noted in the row.
        """
        plan, by_seed = self._plan, []
        if plan.prompts:
            with row.noting("continuations"):
                by_seed = [self._continuations(system, seed) for seed in plan.seeds]
        if by_seed:
            for name, judge in self._classifiers.items():
                with row.noting(name):
                    scores = [judge(texts) for texts in by_seed]
                    row.take_by_seed(name, [[float(score >= YES) for score in one] for one in scores])
                    row.take_by_seed(f"{name}_score", scores)
            all_texts = [text for texts in by_seed for text in texts]
            for n in (1, 2, 3):
                row.values[f"distinct_{n}"] = mean(distinct(texts, n) for texts in by_seed)
            row.values |= {"repetition": repetition(all_texts), "empty": empty(all_texts)}
        if plan.neutral:
            self._damage(row, system, change)
        for task in plan.tasks:
            with row.noting(task):
                self._task(row, system, task)
        return by_seed

    def _continuations(self, system: System, seed: int) -> list[str]:
        plan = self._plan

        def generate() -> list[str]:
            prefixed = [system.prefix + prompt for prompt in plan.prompts]
            return self._model.generate(prefixed, **plan.sampling, seed=seed, progress=self._progress)

        def fits(result: Any) -> bool:
            return len(result) == len(plan.prompts) and all(isinstance(text, str) for text in result)

        key = _key("continuations", system) | {"seed": seed, "sampling": dict(plan.sampling)}
        texts, was_cached = self._cache.get_or_make(key | {"prompts": digest_of(plan.prompts)}, generate, fits)
        if was_cached and self._progress:
            self._progress(len(texts))
        return texts

    def _damage(self, row: Row, system: System, change: Change) -> None:
        """Measure perplexity and divergence from the untouched model on each neutral sentence."""
        plan, damage = self._plan, {}

        def measure() -> dict[str, list[float]]:
            if isinstance(system, Untouched):
                values = perplexities(self._model, plan.neutral, plan.max_length)
                return {"perplexity": values, "kl": [0.0] * len(values)}
            values, divergences = damages(self._model, change, plan.neutral, plan.max_length, system.prefix)
            return {"perplexity": values, "kl": divergences}

        def fits(result: Any) -> bool:
            return result.keys() == {"perplexity", "kl"} and all(_are_numbers(values) for values in result.values())

        with row.noting("perplexity", "kl"):  # both are measured in the same passes
            key = _key("damage", system) | {"neutral": digest_of(plan.neutral), "max_length": plan.max_length}
            damage = self._cache.get_or_make(key, measure, fits)[0]
        for name, values in damage.items():
            with row.noting(name):
                if count := sum(not math.isfinite(value) for value in values):
                    raise LineasError(
                        f"it is not finite on {count} of {len(values)} sentences, so the model is destroyed."
                    )
                row.take(name, values)

    def _task(self, row: Row, system: System, task: str) -> None:
        plan = self._plan

        def measure() -> dict[str, Any]:
            return run_tasks(self._model, [task], plan.task_path, plan.task_limit, system.prefix, plan.fewshot)[task]

        def fits(result: Any) -> bool:
            numbers = [result["value"], *([] if result["error"] is None else [result["error"]])]
            return isinstance(result["metric"], str) and _are_numbers(numbers)

        key = _key("task", system) | {"task": task, **self._settings["tasks"], "names": None}
        result, _ = self._cache.get_or_make(key, measure, fits)
        value, error = result["value"], result["error"]
        row.values[task], row.metrics[task] = value, result["metric"]
        if error is not None:
            row.intervals[task] = (value - 1.96 * error, value + 1.96 * error)


def settings(plan: Plan, classifiers: Mapping[str, Classifier], excluded: Path | None) -> dict[str, Any]:
    """Return the settings of a plan for texts as JSON; `excluded` is a folder of results (see `task_dependencies`)."""
    return {
        **plan.described(),
        "classifiers": {name: getattr(one, "__name__", str(one)) for name, one in classifiers.items()},
        "tasks": {**task_dependencies(plan, excluded), "names": list(plan.tasks)},
    }


def _key(part: str, system: System) -> dict[str, Any]:
    """Return the cache key that all results of one part and system share."""
    return {"part": part, **system.identity(), "prefix": system.prefix}


def _are_numbers(values: Any) -> bool:
    return bool(values) and all(isinstance(value, (int, float)) for value in values)
