"""`lineas calibrate`: the strength that reaches an effect within a damage, written into the artifact."""

from __future__ import annotations

import math
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lineas.checks import LARGEST, SEEDS
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    JsonOption,
    model_for,
    progress_bar,
    say,
    write_json,
)
from lineas.cli.evaluation_options import (
    ClassifierOption,
    JudgeOption,
    LimitOption,
    NeutralOption,
    PromptsOption,
    ShowsOption,
    plan_of,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.evaluation.calibration import Goal, told
from lineas.evaluation.calibration import calibrate as find_strength
from lineas.evaluation.classifiers import PROFANITY, by_column
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.variants import Steered, Untouched
from lineas.files.ownership import check_folder
from lineas.files.writing import check_place
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning.interruption import place_of_unfinished
from lineas.measures import value_text
from lineas.printable import as_label
from lineas.prompts import described, read_prompts
from lineas.versions import stamp


def calibrate(
    intervention: Annotated[str, typer.Argument(metavar="DIR", help="Folder of the intervention.")],
    target_effect: Annotated[
        str | None, typer.Option(metavar="GOAL", help="To reach: toxic-50% or toxic<=0.02; concept>=80%.")
    ] = None,
    max_damage: Annotated[
        str | None, typer.Option(metavar="GOAL", help="Not to exceed: ppl+5%, kl<=0.1, likeness-5%.")
    ] = None,
    prompts: PromptsOption = None,
    neutral: NeutralOption = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Default: the one it was learned on.")] = None,
    classifiers: ClassifierOption = None,
    shows: ShowsOption = None,
    picture_judge: JudgeOption = None,
    seeds: Annotated[int, number("--seeds", SEEDS, "Sampling seeds at every strength.")] = 1,
    limit: LimitOption = None,
    largest: Annotated[float, number("--largest", LARGEST, "Strength to try.")] = 1.0,
    tolerance: Annotated[float, number("--tolerance", LARGEST, "How near, in strength.")] = 0.02,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to make; default: DIR itself.")] = None,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Find the strength by bisection on held-out prompts, and write it and the curve into the model card."""
    places = [] if out is None else [Output("--out", out, artifact.KIND)]
    reads = [prompts, neutral, model, *([] if out is None else [intervention])]
    check_outputs("calibrate", json, *places, force=force, inputs=reads)
    if tolerance >= largest:
        raise LineasError(
            f"the tolerance is above 0 and below the largest strength, not --tolerance {as_label(tolerance)} with "
            f"--largest {as_label(largest)}."
        )
    if target_effect is None and max_damage is None:
        raise LineasError("calibrating needs a goal: --target-effect, --max-damage, or both.")
    effect = None if target_effect is None else Goal.effect(target_effect)
    damage = None if max_damage is None else Goal.damage(max_damage)
    if prompts is None and neutral is None:
        raise LineasError("there is nothing to measure on; give --prompts, --neutral, or both.")
    if shows is not None and prompts is None:
        raise LineasError("there is nothing to draw; give --prompts FILE.")
    learned = Intervention.load(intervention)
    place = out or Path(intervention)
    if out is None:
        if not place.is_dir():
            raise LineasError(f"{intervention} is not a folder here; name one to write with --out.")
        check_place(place)
        check_folder(place, overwrite=True, kind=artifact.KIND)
    texts = read_prompts(prompts)[:limit] if prompts else []
    sentences = read_prompts(neutral)[:limit] if neutral else []
    _warn_of_known(learned, {"--prompts": texts, "--neutral": sentences})
    judged = by_column(classifiers or [PROFANITY]) if texts and not shows else {}
    plan = plan_of(texts, sentences, judged, seeds, shows, picture_judge)
    for goal in (effect, damage):
        if goal is not None and goal.measure not in plan.measures:
            raise LineasError(f"'{goal.text}' is about {goal.measure}, and measured are {', '.join(plan.measures)}.")
    loaded = model_for(model, learned, dtype)
    with tempfile.TemporaryDirectory() as parts, progress_bar("calibrating", None) as advance:

        def measure(strength: float) -> dict[str, float]:
            system = Steered("calibrated", learned, strength) if strength else Untouched()
            row = evaluate(loaded, [system], plan, parts).rows[0]
            needed = [goal.measure for goal in (effect, damage) if goal is not None]
            if row.errors and any(name not in row.values for name in needed):
                name, why = next(iter(row.errors.items()))
                raise LineasError(
                    f"{name} could not be measured at strength {strength:g}: {why.rstrip('.')}"
                    + ("; a smaller --largest may do." if strength else ".")
                )
            advance(1, f"strength {strength:.3g}", None)
            return row.values

        found = find_strength(measure, effect, damage, largest, tolerance)
    data = {"prompts": described(texts), "neutral": described(sentences)}
    how = {"classifiers": judged, "concept": shows, "judge": picture_judge, "seeds": seeds}
    how |= {
        "largest": largest,
        "tolerance": tolerance,
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }
    facts = {**told(found, effect, damage), "data": data, **how, **stamp()}
    curve = [{name: value for name, value in row.items() if math.isfinite(value)} for row in found.curve]
    calibrated = learned.with_facts(calibration=facts, measurements=curve)
    if out is None:
        _check_same(learned, place, calibrated)
    save_or_rescue(calibrated, place, force or out is None)
    talk = say(json)
    shown = [goal.measure for goal in (effect, damage) if goal is not None]
    table = Table(box=None, header_style="bold")
    for name in ("strength", *dict.fromkeys(shown)):
        table.add_column(name.replace("_", " "), justify="right")
    for row in found.curve:
        cells = [value_text(row, name) for name in dict.fromkeys(shown)]
        table.add_row(f"{row['strength']:.3g}", *cells, style="bold" if row["strength"] == found.strength else None)
    talk.print(table)
    talk.print(f"calibrated: strength {found.strength:.3g}, written into {place}")
    if not found.reached:
        talk.print(f"{target_effect} is not reached within {max_damage}; this is the largest strength within it.")
    write_json(json, {"out": str(place), **facts, "curve": found.curve}, "calibrate")


def _check_same(read: Intervention, place: Path, calibrated: Intervention) -> None:
    """Refuse to write over an artifact that another process has replaced since it was read; keep what was found."""
    there = Intervention.load(place)
    if there.digest() != read.digest() or there.facts != read.facts:
        elsewhere = place_of_unfinished(place, "calibrated")
        calibrated.save(elsewhere)
        raise LineasError(f"{place} was changed meanwhile, so it stays; what was calibrated is in {elsewhere}.")


def _warn_of_known(learned: Intervention, given: dict[str, list[str]]) -> None:
    """Say so where what is measured on is what was learned from."""
    known = {data.get("sha256"): side for side, data in learned.facts.get("data", {}).items()}
    for option, texts in given.items():
        side = known.get(described(texts)["sha256"])
        if texts and side:
            warnings.warn(f"{option} are the {side} it was learned from; what is held out tells more.", stacklevel=2)
