"""The results of an evaluation: rows, their texts, and the facts to measure them again."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Row:
    """The measurements of one system at one strength.

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
