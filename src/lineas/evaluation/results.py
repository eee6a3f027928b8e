"""What is measured (a plan), and what comes of it (rows)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lineas.checks import as_texts
from lineas.errors import LineasError
from lineas.evaluation.classifiers import Classifier

BATCH = 64
"""Prompts that the command line continues together: the same number in every verb, since samples depend on it."""
SAMPLING = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "batch_size", "chat")
"""Arguments of `TextModel.generate` that a plan may give."""
SEEDS = range(-(2**63), 2**64)
"""Seeds that torch takes."""


@dataclass(frozen=True)
class Plan:
    """What is measured, the same for every system.

    Args:
        prompts: texts to continue.
        neutral: sentences whose perplexity and predictions should stay as they are.
        classifiers: by the name of the column, what judges the continuations.
        seeds: of the sampling.
        sampling: arguments of `TextModel.generate`; its defaults are the paper's (32 tokens, temperature 1, top-p 0.3,
            repetition penalty 1.2; arXiv 2503.10679, section 4).
        tasks: of lm-eval, by name; see `lineas.evaluation.lm_harness`.
        task_path: a folder with further task files.
        task_limit: at most so many examples of each task.
        fewshot: examples in the context of a task; None for what the task says.
        max_length: tokens of a neutral sentence.

    Raises:
        LineasError: when something is of another type, or makes no sense.
    """

    prompts: Sequence[str]
    neutral: Sequence[str] = ()
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    task_path: str | Path | None = None
    task_limit: int | None = None
    fewshot: int | None = None
    max_length: int = 50

    def __post_init__(self) -> None:
        for name, kind in (("prompts", "prompts"), ("neutral", "sentences"), ("tasks", "tasks")):
            object.__setattr__(self, name, tuple(as_texts(name, getattr(self, name), kind)))
        object.__setattr__(self, "seeds", seeds_of(self.seeds))
        if not isinstance(self.classifiers, Mapping) or not all(map(callable, self.classifiers.values())):
            raise LineasError('classifiers are given by name, such as {"toxic": classifier("profanity-check")}.')
        if self.classifiers and not self.prompts:
            raise LineasError("a classifier judges continuations; give prompts to continue.")
        self._check_sampling()
        if self.task_path is not None and not Path(self.task_path).is_dir():
            raise LineasError(f"there is no folder {self.task_path}; task_path names one with task files of lm-eval.")
        for name, least in (("task_limit", 1), ("fewshot", 0), ("max_length", 2)):
            number = getattr(self, name)
            optional = number is None and name != "max_length"
            if not optional and (isinstance(number, bool) or not isinstance(number, int) or number < least):
                raise LineasError(f"{name} is a whole number of at least {least}, not {number!r}.")

    def _check_sampling(self) -> None:
        if not isinstance(self.sampling, Mapping):
            raise LineasError(f'sampling is given by name, such as {{"temperature": 0}}, not {self.sampling!r}.')
        for name, value in self.sampling.items():
            if name not in SAMPLING:
                raise LineasError(f"sampling knows {', '.join(SAMPLING)}, not {name!r}.")
            if not isinstance(value, (bool, int, float)) or not math.isfinite(value):
                raise LineasError(f"{name} of the sampling is a finite number, not {value!r}.")


def seeds_of(given: Any) -> tuple[int, ...]:
    """Seeds as a tuple.

    Raises:
        LineasError: when there is none, or one is no number that torch takes.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise LineasError(f"seeds is a list of whole numbers such as (0, 1), not {given!r}.")
    seeds = tuple(given)
    if not seeds:
        raise LineasError("measuring needs at least one seed.")
    for seed in seeds:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or int(seed) not in SEEDS:
            raise LineasError(f"a seed is a whole number from -2**63 to 2**64 - 1, not {seed!r}.")
    return tuple(map(int, seeds))


@dataclass
class Row:
    """What one system does at one strength.

    Args:
        system: its name.
        strength: 0 is the untouched model.
        values: by measure: of a classifier NAME the share `NAME` that it gives 0.5 or more and the mean `NAME_score`;
            `perplexity`, `kl` (nats a token), `distinct_1` to `distinct_3`, `repetition`, `empty`; and of every task
            its accuracy.
        by_seed: the shares and scores of classifiers, one a sampling seed.
        intervals: 95 % bootstrap intervals over prompts or sentences; of tasks from their standard error.
        metrics: of every task, what its value is ("acc").
        errors: by measure, why it is missing.
        identity: what tells the system's results from those of others (digests of maps, the text of a prompt).
    """

    system: str
    strength: float
    values: dict[str, float] = field(default_factory=dict)
    by_seed: dict[str, list[float]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Rows, their texts, and what is needed to measure them again.

    Args:
        rows: one a system and strength.
        continuations: by row, in the same order, those of every seed.
        facts: model, data, seeds, versions.
    """

    rows: list[Row]
    continuations: list[list[list[str]]]
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {**self.facts, "rows": [asdict(row) for row in self.rows], "continuations": self.continuations}
