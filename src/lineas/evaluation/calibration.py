"""`calibrate`: the smallest strength that has an effect within a damage, measured on the model."""

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
from lineas.evaluation.strength_search import Found, Values, find_strength
from lineas.evaluation.variants import Steered, Untouched
from lineas.intervention.intervention import Intervention
from lineas.models.digests import reading_weights_once
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import type_name
from lineas.steering.exclusive import exclusively
from lineas.versions import stamp


@dataclass(frozen=True)
class Calibration(Found):
    """The strength that a calibration found, and the intervention that knows it.

    Args:
        strength: the strength.
        reached: whether the fitted curve has the wanted effect there; True where none was wanted.
        curve: everything measured, by strength, the untouched model first.
        fitted: by measure of a goal, the value of the fitted curve at the strength.
        intervals: by strength and measure of a goal, the 95 % interval of the value; of a relative goal, the interval
            of the ratio to the untouched model, prompt by prompt, times that model's value.
        intervention: the intervention with strength and curve among its facts.
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
    """Find the smallest strength that has an effect; if it damages too much, the largest strength that does not.

    Without an effect it is the largest strength whose damage is within the bound. See `find_strength`.

    Args:
        model: untouched text or image model.
        intervention: what is calibrated.
        plan: what is measured at every strength, on prompts that nothing was learned from.
        effect: a goal to reach, such as "toxic-50%", "toxic<=0.02" or "concept>=80%".
        damage: a goal not to exceed, such as "ppl+5%", "kl<=0.1" or "likeness-5%".
        largest: largest strength to try.
        tolerance: how exactly the strength is found.
        sure: whether goals must hold at the far end of each 95 % interval instead of the measured value.
        cache: folder for parts that are done; None for none.
        progress: called with every strength once it is measured.

    Raises:
        LineasError: without a goal, for a goal about something that the plan does not measure, when a measure fails, or
            as `find_strength` says.
    """
    goals = {"effect": effect, "damage": damage}
    read = {"effect": Goal.effect, "damage": Goal.damage}
    wanted = {name: read[name](goal) if isinstance(goal, str) else goal for name, goal in goals.items()}
    given = check_measured(plan, *wanted.values())
    rows: dict[float, Row] = {}
    intervals: dict[float, dict[str, tuple[float, float]]] = {}

    def measure(strength: float) -> Values:
        system = Steered("calibrated", intervention, strength) if strength else Untouched()
        row = rows[strength] = evaluate(model, [system], plan, cache).rows[0]
        if row.errors and any(goal.measure not in row.values for goal in given):
            name, why = next(iter(row.errors.items()))
            raise LineasError(
                f"{name} could not be measured at strength {strength:g}: {why.rstrip('.')}"
                + ("; a smaller --largest may do." if strength else ".")
            )
        around = intervals[strength] = {goal.measure: _interval(goal, row, rows[0.0]) for goal in given}
        if progress:
            progress(strength)
        if not (sure and strength):
            return row.values
        return {**row.values, **{goal.measure: around[goal.measure][goal.below] for goal in given}}

    with reading_weights_once():
        found = find_strength(measure, wanted["effect"], wanted["damage"], largest, tolerance)
    curve = [{"strength": s, **rows[s].values} for s in sorted(rows)]
    facts = {
        "strength": found.strength,
        "reached": found.reached,
        **{name: goal.text for name, goal in wanted.items() if goal is not None},
        "fitted": found.fitted,
        "intervals": intervals[found.strength],
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
    return Calibration(found.strength, found.reached, curve, found.fitted, intervals, calibrated)


def check_measured(plan: Plan, *goals: Any) -> list[Goal]:
    """Return the goals that are not None.

    Raises:
        LineasError: for a goal about something that a plan does not measure.
    """
    given = [goal for goal in goals if isinstance(goal, Goal)]
    for goal in given:
        if goal.measure not in plan.measures:
            there = ", ".join(plan.measures) or "nothing"
            raise LineasError(f"'{goal.text}' is about {goal.measure}, and measured are {there}.")
    return given


def _interval(goal: Goal, row: Row, untouched: Row) -> tuple[float, float]:
    """Return the 95 % interval of a goal's measure: of a relative goal, of the ratio prompt by prompt."""
    value = row.values[goal.measure]
    before, after = (one.samples.get(goal.measure) for one in (untouched, row))
    if goal.relative and before and after:
        base = untouched.values[goal.measure]
        low, high = ratio_interval(after, before)
        return low * base, high * base
    return row.intervals.get(goal.measure, (value, value))
