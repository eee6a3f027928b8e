"""`calibrate`: find the smallest strength that has an effect within a damage, by measuring the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.goals import Goal
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Row
from lineas.evaluation.statistics import ratio_interval
from lineas.evaluation.strength_search import SearchResult, Values, find_strength
from lineas.evaluation.variants import Steered, Untouched
from lineas.intervention.intervention import Intervention
from lineas.models.digests import reading_weights_once
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import type_name
from lineas.steering.exclusive import exclusively
from lineas.versions import stamp


@dataclass(frozen=True)
class Calibration(SearchResult):
    """The result of a calibration, with intervals and the calibrated intervention.

    Args:
        strength: calibrated strength.
        reached: whether the fitted curve reaches the effect at that strength; True if no effect was asked for.
        curve: all measured values by increasing strength; the untouched model is first.
        fitted: value of the fitted curve at the strength, for the measure of each goal.
        intervals: 95 % intervals by strength and measure of a goal. For a relative goal, it is the interval of the
            ratio to the untouched model over the same prompts, times that model's value.
        intervention: intervention with the strength and the curve among its facts.
    """

    intervals: dict[float, dict[str, tuple[float, float]]]
    intervention: Intervention = field(repr=False)


@exclusively
def calibrate(
    model: TextModel | ImageModel,
    intervention: Intervention,
    plan: Plan,
    effect: str | Goal | None = None,
    damage: str | Goal | None = None,
    *,
    largest: float = 1.0,
    tolerance: float = 0.02,
    sure: bool = False,
    cache: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Calibration:
    """Find the smallest strength that has an effect; if it damages too much, find the largest strength that does not.

    Without an effect, find the largest strength whose damage is within the bound. See `find_strength`.

    Args:
        model: untouched text or image model.
        intervention: intervention to calibrate.
        plan: measurements at each strength, on prompts that nothing was learned from.
        effect: goal to reach, such as "toxic-50%", "toxic<=0.02" or "concept>=80%".
        damage: goal not to exceed, such as "ppl+5%", "kl<=0.1" or "likeness-5%".
        largest: largest strength to try; default: 1.
        tolerance: largest error of the strength; default: 0.02.
        sure: whether the goals must hold in the whole 95 % interval, and not only for the measured value.
        cache: folder for finished parts; None for no cache.
        progress: function that is called with each strength after it was measured.

    Raises:
        LineasError: when there is no goal, the plan does not measure one, a measure fails, or `find_strength` fails.
    """
    goals = {
        "effect": Goal.effect(effect) if isinstance(effect, str) else effect,
        "damage": Goal.damage(damage) if isinstance(damage, str) else damage,
    }
    set_goals = check_measured(plan, *goals.values())
    rows: dict[float, Row] = {}
    intervals: dict[float, dict[str, tuple[float, float]]] = {}

    def measure(strength: float) -> Values:
        system = Steered("calibrated", intervention, strength) if strength else Untouched()
        row = rows[strength] = evaluate(model, [system], plan, cache).rows[0]
        if row.errors and any(goal.measure not in row.values for goal in set_goals):
            name, reason = next(iter(row.errors.items()))
            raise LineasError(
                f"{name} could not be measured at strength {strength:g}: {reason.rstrip('.')}"
                + ("; a smaller --largest (largest=...) may do." if strength else ".")
            )
        ends = intervals[strength] = {goal.measure: _interval(goal, row, rows[0.0]) for goal in set_goals}
        if progress:
            progress(strength)
        if not (sure and strength):
            return row.values
        return {**row.values, **{goal.measure: ends[goal.measure][goal.below] for goal in set_goals}}

    with reading_weights_once():
        result = find_strength(measure, goals["effect"], goals["damage"], largest, tolerance)
    curve = [{"strength": s, **rows[s].values} for s in sorted(rows)]
    facts = {
        "strength": result.strength,
        "reached": result.reached,
        **{name: goal.text for name, goal in goals.items() if goal is not None},
        "fitted": result.fitted,
        "intervals": intervals[result.strength],
        "data": {name: plan.described()[name] for name in ("prompts", "neutral")},
        **plan.names,
        "seeds": len(plan.seeds),
        "largest": largest,
        "tolerance": tolerance,
        "sure": sure,
        "model": model.name,
        "dtype": type_name(model.dtype),
        **stamp(),
    }
    finite = [{name: value for name, value in row.items() if math.isfinite(value)} for row in curve]
    calibrated = intervention.with_facts(calibration=facts, measurements=finite)
    return Calibration(result.strength, result.reached, curve, result.fitted, intervals, calibrated)


def check_measured(plan: Plan, *goals: Any) -> list[Goal]:
    """Return the goals that are not None, whose measures the plan must take."""
    set_goals = [goal for goal in goals if isinstance(goal, Goal)]
    for goal in set_goals:
        if goal.measure not in plan.measures:
            measures = ", ".join(plan.measures) or "nothing"
            raise LineasError(f"'{goal.text}' is about {goal.measure}, but the measures here are {measures}.")
    return set_goals


def _interval(goal: Goal, row: Row, untouched: Row) -> tuple[float, float]:
    """Return the 95 % interval of a goal's measure; for a relative goal, from the ratios over the same prompts."""
    value = row.values[goal.measure]
    before, after = (one.samples.get(goal.measure) for one in (untouched, row))
    if goal.relative and before and after:
        base = untouched.values[goal.measure]
        low, high = ratio_interval(after, before)
        return low * base, high * base
    return row.intervals.get(goal.measure, (value, value))
