"""Results of an evaluation: rows of measures, continuations, and the facts that are needed to repeat it."""

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
        system: name of the system.
        strength: strength of the system; 0 is the untouched model.
        values: values by measure. A classifier NAME gives `NAME`, the share of texts with probability 0.5 or more, and
            `NAME_score`, the mean probability. Further measures are `perplexity`, `kl` (nats per token), `distinct_1`
            to `distinct_3`, `repetition`, `empty`, and the result of each task under its name.
        by_seed: shares and mean probabilities of classifiers, one number for each sampling seed.
        intervals: 95 % bootstrap intervals over prompts or sentences; for tasks from the standard error.
        metrics: metric of each task, such as "acc".
        errors: reason of each missing measure.
        identity: part of the cache key that names the system (digests of maps, the text of a prompt).
        samples: one number for each prompt or sentence by measure, the mean over seeds; not part of the JSON.
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
        """Add a measure by its samples: their mean, and its interval."""
        self.samples[measure] = list(samples)
        self.values[measure] = mean(samples)
        self.intervals[measure] = interval(samples)

    def take_by_seed(self, measure: str, by_seed: Sequence[Sequence[float]]) -> None:
        """Add a measure by a list of samples for each seed; the prompts are the same in each list."""
        self.take(measure, [mean(one) for one in zip(*by_seed)])
        self.by_seed[measure] = [mean(one) for one in by_seed]
        self.values[measure] = mean(self.by_seed[measure])

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {name: value for name, value in asdict(self).items() if name != "samples"}

    @contextmanager
    def noting(self, *measures: str) -> Iterator[None]:
        """Note an error within the block as the reason of missing measures, so that other measures go on.

        With the environment variable LINEAS_DEBUG, every error but a LineasError is raised instead.

        Args:
            measures: names of the measures that the block takes.
        """
        try:
            yield
        except Exception as error:  # libraries raise many types
            ours = isinstance(error, LineasError)
            if not ours and os.environ.get("LINEAS_DEBUG"):
                raise
            LOG.debug("%s could not be measured", measures[0], exc_info=True)
            reason = str(error).strip().splitlines()[0] if ours else f"{type(error).__name__}: {first_line(error)}"
            self.errors |= dict.fromkeys(measures, reason)


@dataclass(frozen=True)
class Evaluation:
    """The results of all systems.

    Args:
        rows: one row for each system and strength.
        continuations: texts by row, seed and prompt, in the order of `rows`.
        facts: model, data, seeds and versions, which are needed to repeat the evaluation.
    """

    rows: list[Row]
    continuations: list[list[list[str]]]
    facts: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return facts, rows and continuations as JSON."""
        return {**self.facts, "rows": [row.as_json() for row in self.rows], "continuations": self.continuations}
