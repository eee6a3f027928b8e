"""What is measured (a plan), and what comes of it (rows)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lineas.errors import LineasError, check_texts
from lineas.evaluation.classifiers import Classifier


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
        tasks: of lm-eval, by name; see `lineas.evaluation.harness`.
        task_path: a folder with further task files.
        task_limit: at most so many examples of each task.
        fewshot: examples in the context of a task; None for what the task says.
        max_length: tokens of a neutral sentence.
    """

    prompts: Sequence[str]
    neutral: Sequence[str] = ()
    classifiers: Mapping[str, Classifier] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    task_path: str | None = None
    task_limit: int | None = None
    fewshot: int | None = None
    max_length: int = 50

    def __post_init__(self) -> None:
        if not self.seeds:
            raise LineasError("measuring needs at least one seed.")
        if self.classifiers and not self.prompts:
            raise LineasError("a classifier judges continuations; give prompts to continue.")
        check_texts(self.prompts)
        check_texts(self.neutral, "sentence")


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
