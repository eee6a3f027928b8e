"""`lineas calibrate`: the strength that reaches an effect within a damage, written into the artifact."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas.checks import LARGEST
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    InterventionOption,
    JsonOption,
    ModelArgument,
    load_interventions,
    model_for,
    progress_bar,
    say,
    write_json,
)
from lineas.cli.evaluation_options import (
    ClassifierOption,
    JudgeOption,
    LimitOption,
    NegativeOption,
    NeutralOption,
    PositiveOption,
    PromptsOption,
    SeedsOption,
    ShowsOption,
    plan_of,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
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
    intervention: InterventionOption,
    model: ModelArgument = None,
    target_effect: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Effect to reach: toxic-50% or toxic<=0.02; concept>=80%.")
    ] = None,
    max_damage: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Damage not to exceed: ppl+5%, kl<=0.1, likeness-5%.")
    ] = None,
    prompts: PromptsOption = None,
    neutral: NeutralOption = None,
    classifiers: ClassifierOption = None,
    positive: PositiveOption = None,
    negative: NegativeOption = None,
    shows: ShowsOption = None,
    picture_judge: JudgeOption = None,
    seeds: SeedsOption = 1,
    limit: LimitOption = None,
    largest: Annotated[float, number("--largest", LARGEST, "Largest strength to try.")] = 1.0,
    precision: Annotated[float, number("--precision", LARGEST, "How exactly the strength is found.")] = 0.02,
    sure: Annotated[
        bool, typer.Option("--sure", help="Goals must hold at the far end of each 95 % interval, not only on average.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to make; default: the intervention's.")
    ] = None,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Find the strength by bisection on held-out prompts, and write it and the curve into the model card."""
    places = [] if out is None else [Output("--out", out, artifact.KIND)]
    reads = [prompts, neutral, model, positive, negative, *([] if out is None else intervention)]
    check_outputs("calibrate", json, *places, force=force, inputs=reads)
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
            what = "several interventions are" if len(intervention) > 1 else f"{place} is"
            raise LineasError(f"{what} not a folder here; name one to write with --out.")
        check_place(place)
        check_folder(place, overwrite=True, kind=artifact.KIND)
    plan = plan_of(
        prompts, neutral, classifiers, positive, negative, shows=shows, judge=picture_judge, seeds=seeds, limit=limit
    )
    check_measured(plan, effect, damage)
    _warn_of_known(learned, {"--prompts": plan.prompts, "--neutral": plan.neutral})
    loaded = model_for(model, learned, dtype)
    with tempfile.TemporaryDirectory() as parts, progress_bar("calibrating", None) as advance:
        found = find_strength(
            loaded, learned, plan, effect, damage, largest=largest, tolerance=precision, sure=sure, cache=parts,
            progress=lambda strength: advance(1, f"strength {strength:.3g}", None),
        )  # fmt: skip
    if out is None:
        _check_same(learned, place, found.intervention)
    save_or_rescue(found.intervention, place, force or out is None)
    talk = say(json)
    goals = [goal for goal in (effect, damage) if goal is not None]
    talk.print(_table(found, goals))
    talk.print(f"calibrated: strength {found.strength:.3g}, written into {place}")
    if not found.reached:
        talk.print(f"{target_effect} is not reached within {max_damage}; this is the largest strength within it.")
    for goal in goals if found.reached else [goal for goal in goals if goal is damage]:
        low, high = found.intervals[found.strength][goal.measure]
        far, untouched = (high if goal.below else low), found.curve[0]
        if goal.excess({goal.measure: far}, untouched) > 0:
            talk.print(
                f"{goal.text} holds on the fitted curve, not in the whole interval, which ends at "
                f"{goal.value_text({goal.measure: far})}; --sure, more prompts or more --seeds make it surer.",
                soft_wrap=True,
            )
    facts: dict[str, Any] = found.intervention.facts["calibration"]
    write_json(json, {"out": str(place), **facts, "curve": found.curve}, "calibrate")


def _table(found: Calibration, goals: Sequence[Goal]) -> Table:
    """Return the curve of what the goals are about, the strength that was found in bold."""
    names = list(dict.fromkeys(goal.measure for goal in goals))
    table = Table(box=None, header_style="bold")
    for name in ("strength", *names):
        table.add_column(name.replace("_", " "), justify="right")
    for row in found.curve:
        around = found.intervals[row["strength"]]
        cells = [measure(name).text(row[name], between=around[name]) for name in names]
        table.add_row(f"{row['strength']:.3g}", *cells, style="bold" if row["strength"] == found.strength else None)
    return table


def _check_same(read: Intervention, place: Path, calibrated: Intervention) -> None:
    """Refuse to write over an artifact that another process has replaced since it was read; keep what was found."""
    there = Intervention.load(place)
    if there.digest() != read.digest() or there.facts != read.facts:
        elsewhere = place_of_unfinished(place, "calibrated")
        calibrated.save(elsewhere)
        raise LineasError(f"{place} was changed meanwhile, so it stays; what was calibrated is in {elsewhere}.")


def _warn_of_known(learned: Intervention, given: Mapping[str, Sequence[str]]) -> None:
    """Say so where what is measured on is what was learned from."""
    known = {data.get("sha256"): side for side, data in learned.facts.get("data", {}).items()}
    for option, texts in given.items():
        side = known.get(described(texts)["sha256"])
        if texts and side:
            warnings.warn(f"{option} are the {side} it was learned from; what is held out tells more.", stacklevel=2)
