"""`lineas calibrate`: find the strength that reaches an effect within a damage, and save it in the artifact."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas.checks import LARGEST
from lineas.cli import options
from lineas.cli.common import load_interventions, model_for, progress_bar, screen_for, write_json
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.cli.plan import plan_of
from lineas.errors import LineasError
from lineas.evaluation.calibration import Calibration, check_measured
from lineas.evaluation.calibration import calibrate as find_strength
from lineas.evaluation.goals import Goal
from lineas.files.ownership import check_folder
from lineas.files.writing import check_place
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning.interruption import place_of_unfinished
from lineas.measures import measure
from lineas.printable import as_label
from lineas.prompts import described


def calibrate(
    intervention: options.Interventions,
    model: options.Model = None,
    target_effect: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Effect to reach, such as toxic-50%, toxic<=0.02, concept>=80%.")
    ] = None,
    max_damage: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Damage not to exceed, such as ppl+5%, kl<=0.1, likeness-5%.")
    ] = None,
    prompts: options.Prompts = None,
    neutral: options.Neutral = None,
    classifiers: options.Classifier = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    shows: options.Shows = None,
    picture_judge: options.Judge = None,
    seeds: options.Seeds = 1,
    limit: options.Limit = None,
    largest: Annotated[float, number("--largest", LARGEST, "Largest strength to try.")] = 1.0,
    precision: Annotated[float, number("--precision", LARGEST, "Largest error of the strength.")] = 0.02,
    sure: Annotated[
        bool, typer.Option("--sure", help="Reach the goals in the whole 95 % interval, not only on average.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; default: the intervention's own folder.")
    ] = None,
    dtype: options.Dtype = "auto",
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Find the right strength by bisection on held-out prompts, and write it into the artifact and its model card."""
    outputs = [] if out is None else [Output("--out", out, artifact.KIND)]
    inputs = [prompts, neutral, model, positive, negative, *([] if out is None else intervention)]
    check_outputs("calibrate", json, *outputs, force=force, inputs=inputs)
    if precision >= largest:
        raise LineasError(
            f"the precision is above 0 and below the largest strength, not --precision {as_label(precision)} with "
            f"--largest {as_label(largest)}."
        )
    if target_effect is None and max_damage is None:
        raise LineasError("calibrating needs a goal: --target-effect, --max-damage, or both.")
    effect = None if target_effect is None else Goal.effect(target_effect)
    damage = None if max_damage is None else Goal.damage(max_damage)
    if prompts is None and neutral is None:
        raise LineasError("there is nothing to measure on; give --prompts, --neutral, or both.")
    learned = load_interventions(intervention)
    place = out or Path(intervention[0])
    if out is None:
        if len(intervention) > 1 or not place.is_dir():
            subject = "several interventions are" if len(intervention) > 1 else f"{place} is"
            raise LineasError(f"{subject} not a folder here, so give --out DIR, the folder to write.")
        check_place(place)
        check_folder(place, overwrite=True, kind=artifact.KIND)
    plan = plan_of(
        prompts, neutral, classifiers, positive, negative, shows=shows, judge=picture_judge, seeds=seeds, limit=limit
    )
    check_measured(plan, effect, damage)
    _warn_if_learned_from(learned, {"--prompts": plan.prompts, "--neutral": plan.neutral})
    loaded = model_for(model, learned, dtype)
    with tempfile.TemporaryDirectory() as parts, progress_bar("calibrating", None) as advance:
        calibration = find_strength(
            loaded, learned, plan, effect, damage, largest=largest, tolerance=precision, sure=sure, cache=parts,
            progress=lambda strength: advance(1, f"strength {strength:.3g}", None),
        )  # fmt: skip
    if out is None:
        _check_unchanged(learned, place, calibration.intervention)
    save_or_rescue(calibration.intervention, place, force or out is None)
    screen = screen_for(json)
    goals = [goal for goal in (effect, damage) if goal is not None]
    screen.print(_table(calibration, goals))
    screen.print(f"calibrated: strength {calibration.strength:.3g}, written into {place}")
    if not calibration.reached:
        screen.print(f"{target_effect} is not reached within {max_damage}; this is the largest strength within it.")
    for goal in goals if calibration.reached else [goal for goal in goals if goal is damage]:
        low, high = calibration.intervals[calibration.strength][goal.measure]
        end, untouched = (high if goal.below else low), calibration.curve[0]
        if goal.excess({goal.measure: end}, untouched) > 0:
            screen.print(
                f"{goal.text} holds on the fitted curve, but not in the whole interval, which ends at "
                f"{goal.value_text({goal.measure: end})}; --sure, more prompts or more --seeds make it surer.",
                soft_wrap=True,
            )
    facts: dict[str, Any] = calibration.intervention.facts["calibration"]
    write_json(json, {"out": str(place), **facts, "curve": calibration.curve}, "calibrate")


def _table(calibration: Calibration, goals: Sequence[Goal]) -> Table:
    """Return the measures of the goals by strength, with the row of the chosen strength in bold."""
    names = list(dict.fromkeys(goal.measure for goal in goals))
    table = Table(box=None, header_style="bold")
    for name in ("strength", *names):
        table.add_column(name.replace("_", " "), justify="right")
    for row in calibration.curve:
        intervals = calibration.intervals[row["strength"]]
        cells = [measure(name).text(row[name], between=intervals[name]) for name in names]
        style = "bold" if row["strength"] == calibration.strength else None
        table.add_row(f"{row['strength']:.3g}", *cells, style=style)
    return table


def _check_unchanged(read: Intervention, place: Path, calibrated: Intervention) -> None:
    """Refuse to overwrite an artifact that was replaced since it was read; the calibrated one is saved elsewhere."""
    now = Intervention.load(place)
    if now.digest() != read.digest() or now.facts != read.facts:
        elsewhere = place_of_unfinished(place, "calibrated")
        calibrated.save(elsewhere)
        raise LineasError(
            f"{place} was changed meanwhile, so it was not overwritten; the calibrated intervention is in {elsewhere}."
        )


def _warn_if_learned_from(learned: Intervention, texts_by_option: Mapping[str, Sequence[str]]) -> None:
    """Warn if the intervention was learned from the texts that it is measured on."""
    sides = {data.get("sha256"): side for side, data in learned.facts.get("data", {}).items()}
    for option, texts in texts_by_option.items():
        side = sides.get(described(texts)["sha256"])
        if texts and side:
            warnings.warn(
                f"{option} are the {side} it was learned from; other texts, which were held out, measure better.",
                stacklevel=2,
            )
