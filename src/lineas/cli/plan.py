"""The plan of measurements that the options of several verbs ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lineas.cli.terminal import print_aside
from lineas.errors import LineasError
from lineas.evaluation.classifiers import PROFANITY, Classifier, by_column, classifier, fitted
from lineas.evaluation.plan import BATCH, Plan
from lineas.prompts import read_prompts


def plan_of(
    prompts: str | None,
    neutral: str | None,
    classifiers: list[str] | None,
    positive: str | None = None,
    negative: str | None = None,
    *,
    shows: str | None,
    judge: str | None,
    seeds: int,
    limit: int | None,
    more: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the measurements that the options ask for: of pictures if `shows` names a concept, else of texts.

    `more` are further fields of a plan for texts.
    """
    if shows is not None:
        refuse_beside_shows({"--neutral": neutral, "--positive": positive, "--negative": negative})
        if prompts is None:
            raise LineasError("there is nothing to draw; give --prompts FILE.")
        return Plan(read_prompts(prompts)[:limit], seeds=range(seeds), concept=shows, judge=judge)
    texts = read_prompts(prompts)[:limit] if prompts else []
    sentences = read_prompts(neutral)[:limit] if neutral else []
    judged = _classifiers(classifiers, positive, negative) if texts else {}
    return Plan(texts, sentences, judged, range(seeds), **{"sampling": {"batch_size": BATCH}, **(more or {})})


def refuse_beside_shows(options: Mapping[str, Any]) -> None:
    """Refuse options about texts, by name, that have a value although --shows asks for pictures."""
    if used := [name for name, value in options.items() if value]:
        raise LineasError(f"{used[0]} is about texts; leave it out, or leave out --shows.")


def _classifiers(names: list[str] | None, positive: str | None, negative: str | None) -> dict[str, str | Classifier]:
    """Return the classifiers by the column of the table that each fills."""
    if (positive is None) != (negative is None):
        raise LineasError("fitting a classifier needs both --positive and --negative.")
    classifiers: dict[str, str | Classifier] = dict(by_column(names or [PROFANITY]))
    for name in classifiers.values():
        classifier(name)  # so that one that cannot be loaded is refused now
    if positive is not None and negative is not None:
        if "concept" in classifiers:
            raise LineasError("two classifiers would fill the column 'concept'; write COLUMN=NAME for the other one.")
        classifiers["concept"], area = fitted(read_prompts(positive), read_prompts(negative))
        print_aside(f"concept classifier: area under the ROC curve {area:.3f} in a cross-validation")
    return classifiers
