"""The results of an evaluation: rows, their texts, and the facts to measure them again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from lineas.errors import LineasError, first_line
from lineas.evaluation.statistics import interval

LOG = logging.getLogger(__name__)


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
        samples: by measure, one number for each prompt or sentence, the mean over seeds; not part of the JSON.
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
    samples: dict[str, list[float]] = field(default_factory=dict, repr=False)

    def take(self, measure: str, samples: Sequence[float]) -> None:
        """Add a measure: the mean of its samples, and its interval."""
        self.samples[measure] = list(samples)
        self.values[measure] = mean(samples)
        self.intervals[measure] = interval(samples)

    def take_by_seed(self, measure: str, by_seed: Sequence[Sequence[float]]) -> None:
        """Add a measure of several seeds, a list of samples for each; the samples of a prompt belong together."""
        self.take(measure, [mean(one) for one in zip(*by_seed)])
        self.by_seed[measure] = [mean(one) for one in by_seed]
        self.values[measure] = mean(self.by_seed[measure])

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON holds it."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}

    @contextmanager
    def noting(self, *measures: str) -> Iterator[None]:
        """Within the block a failure is noted as the reason why measures are missing; the other measures go on.

        With the variable LINEAS_DEBUG, what is no LineasError goes on as it is.

        Args:
            measures: names of what the block measures.
        """
        try:
            yield
        except Exception as error:  # of whatever library
            known = isinstance(error, LineasError)
            if not known and os.environ.get("LINEAS_DEBUG"):
                raise
            LOG.debug("%s could not be measured", measures[0], exc_info=True)
            reason = str(error).strip().splitlines()[0] if known else f"{type(error).__name__}: {first_line(error)}"
            self.errors |= dict.fromkeys(measures, reason)


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
        return {**self.facts, "rows": [row.as_json() for row in self.rows], "continuations": self.continuations}
