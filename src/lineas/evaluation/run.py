"""Effect and damage of several systems at several strengths, measured on the same prompts, resumable."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

from lineas.alone import undisturbed
from lineas.errors import LineasError
from lineas.evaluation import texts as text_measures
from lineas.evaluation.classifiers import Classifier
from lineas.evaluation.harness import run_tasks
from lineas.evaluation.kept import Kept
from lineas.evaluation.perplexity import damages, perplexities
from lineas.evaluation.records import Evaluation, Plan, Row
from lineas.evaluation.statistics import interval
from lineas.evaluation.systems import System, Untouched
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.prompts import described
from lineas.stamp import packages, stamp

YES = 0.5
"""A text shows a concept when its classifier gives this or more."""


@undisturbed
def evaluate(
    model: TextModel,
    systems: Sequence[System],
    plan: Plan,
    folder: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measure every system by the same plan. A measure that fails is noted and loses no other.

    Args:
        model: untouched.
        systems: what is judged; those at strength 0 are the untouched model.
        plan: what is measured.
        folder: where parts that are done are kept, so that an interrupted evaluation goes on there.
        progress: called with the number of prompts continued, or read from an earlier run.

    Raises:
        LineasError: when there is no system, or one does not fit the model.
    """
    if not systems:
        raise LineasError("there is nothing to judge; give at least one system or strength.")
    for system in systems:
        with system.applied(model):  # what does not fit is said before hours of measuring
            pass
    weights = weights_digest(model)
    kept = Kept(folder, {"network": weights, "dtype": str(model.dtype), **packages()})
    rows, continuations = [], []
    for system in systems:
        judged = Untouched() if system.strength == 0 else system
        row = Row(system.name, system.strength, identity=judged.identity())
        made: list[list[str]] = []
        if plan.prompts:
            _try(row, "continuations", _continue, made, model, judged, plan, kept, progress)
        if made:
            for name, judge in plan.classifiers.items():
                _try(row, name, _classify, row, name, judge, made)
            _look(row, made)
        if plan.neutral:
            damage: dict[str, list[float]] = {}
            _try(row, "perplexity", _damage, damage, model, judged, plan, kept)
            for measure, values in damage.items():
                _try(row, measure, _add, row, measure, values)
            if not damage:
                row.errors["kl"] = row.errors["perplexity"]  # measured in the same passes
        for task in plan.tasks:
            _try(row, task, _task, row, model, judged, plan, task, kept)
        rows.append(row)
        continuations.append(made)
    facts = {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompts": described(plan.prompts),
        "neutral": described(plan.neutral),
        "seeds": list(plan.seeds),
        "sampling": dict(plan.sampling),
        "classifiers": {name: getattr(judge, "__name__", str(judge)) for name, judge in plan.classifiers.items()},
        "tasks": {**_of_tasks(plan), "names": list(plan.tasks)},
        "max_length": plan.max_length,
        "weights": weights,
        "revision": model.revision,
        **stamp(),
    }
    return Evaluation(rows, continuations, facts)


def _try(row: Row, measure: str, run: Callable[..., None], *arguments: Any) -> None:
    try:
        run(*arguments)
    except Exception as error:  # whatever it is, the other measures go on
        first = (str(error).strip().splitlines() or [""])[0]
        row.errors[measure] = first if isinstance(error, LineasError) else f"{type(error).__name__}: {first}"


def _continue(
    made: list[list[str]],
    model: TextModel,
    system: System,
    plan: Plan,
    kept: Kept,
    progress: Callable[[int], None] | None,
) -> None:
    """Add every seed's continuations, or none."""
    made += [_continued(model, system, plan, seed, kept, progress) for seed in plan.seeds]


def _continued(
    model: TextModel,
    system: System,
    plan: Plan,
    seed: int,
    kept: Kept,
    progress: Callable[[int], None] | None,
) -> list[str]:
    def generate() -> list[str]:
        with system.applied(model):
            texts = [system.prefix + prompt for prompt in plan.prompts]
            return model.generate(texts, **plan.sampling, seed=seed, progress=progress)

    what = {"part": "continuations", **system.identity(), "seed": seed, "sampling": dict(plan.sampling)}
    made, was_there = kept.get({**what, "prompts": described(plan.prompts)}, generate)
    if was_there and progress:
        progress(len(made))
    return made


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


def _damage(damage: dict[str, list[float]], model: TextModel, system: System, plan: Plan, kept: Kept) -> None:
    """Fill in the perplexity of every neutral sentence, and the divergence from the untouched model on it."""

    def measure() -> dict[str, list[float]]:
        if isinstance(system, Untouched):
            found = perplexities(model, plan.neutral, plan.max_length)
            return {"perplexity": found, "kl": [0.0] * len(found)}
        found, apart = damages(model, lambda: system.applied(model), plan.neutral, plan.max_length, system.prefix)
        return {"perplexity": found, "kl": apart}

    what = {"part": "damage", **system.identity(), "neutral": described(plan.neutral), "max_length": plan.max_length}
    damage.update(kept.get(what, measure)[0])


def _task(row: Row, model: TextModel, system: System, plan: Plan, task: str, kept: Kept) -> None:
    def measure() -> dict[str, Any]:
        with system.applied(model):
            return run_tasks(model, [task], plan.task_path, plan.task_limit, system.prefix, plan.fewshot)[task]

    result, _ = kept.get({"part": "task", **system.identity(), "task": task, **_of_tasks(plan)}, measure)
    row.values[task] = result["value"]
    row.metrics[task] = result["metric"]
    if result["error"] is not None:
        row.intervals[task] = (result["value"] - 1.96 * result["error"], result["value"] + 1.96 * result["error"])


def _of_tasks(plan: Plan) -> dict[str, Any]:
    """What the numbers of tasks depend on beside the system."""
    files = sorted(Path(plan.task_path).glob("**/*.yaml")) if plan.task_path else []
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None
    return {"limit": plan.task_limit, "fewshot": plan.fewshot, "files": digest, "lm_eval": _version("lm_eval")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def weights_digest(model: TextModel | ImageModel) -> str:
    """A digest of all weights, by their sums: enough to tell a model from one trained further."""
    sums = [
        f"{name} {p.double().sum():.10g} {p.double().abs().sum():.10g}" for name, p in model.network.named_parameters()
    ]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _add(row: Row, column: str, values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        count = sum(not math.isfinite(value) for value in values)
        raise LineasError(f"it is not finite on {count} of {len(values)} sentences; the model is destroyed.")
    row.values[column] = mean(values)
    row.intervals[column] = interval(values)
