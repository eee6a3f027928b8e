"""The part of `lineas evaluate` that is about pictures."""

from __future__ import annotations

from pathlib import Path

from lineas.cli.common import load_interventions, model_for, progress_bar, say, write_json
from lineas.cli.evaluation_options import (
    EVALUATION,
    PARTS,
    PLOT,
    TABLE,
    names_of,
    parts_of,
    show,
    steered_systems,
    worked_in,
)
from lineas.errors import LineasError
from lineas.evaluation.judges import judge
from lineas.evaluation.picture_measures import PicturePlan, settings_of_pictures
from lineas.evaluation.picture_measures import evaluate_pictures as judge_pictures
from lineas.evaluation.variants import Steered, Untouched
from lineas.files.working_folder import result
from lineas.files.writing import write_text
from lineas.models.image import ImageModel
from lineas.prompts import read_prompts
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import markdown


def evaluate_pictures(
    prompts: str | None,
    concept: str,
    judge_name: str | None,
    model: str | None,
    interventions: list[str],
    strengths: list[float],
    limit: int | None,
    seeds: int,
    dtype: str,
    out: Path | None,
    json: Path | None,
    force: bool,
    other_model: bool,
    foreign: list[str],
) -> None:
    """Measure how much pictures show a concept, and what is left of the untouched ones."""
    if foreign:
        raise LineasError(f"{foreign[0]} is about texts; leave it out, or leave out --shows.")
    if prompts is None:
        raise LineasError("there is nothing to draw; give --prompts FILE.")
    texts = read_prompts(prompts)[:limit]
    learned = {source: load_interventions(parts_of(source)) for source in interventions}
    names = names_of(list(learned))
    loaded = model_for(model, next(iter(learned.values()), None), dtype)
    if not isinstance(loaded, ImageModel):
        raise LineasError(f"{loaded.name} writes and draws no images; leave out --shows.")
    plan = PicturePlan(texts, concept, judge(judge_name or loaded.judge or "clip"), range(seeds))
    systems: list[Steered | Untouched] = [Untouched()] if 0 in strengths or not learned else []
    systems += steered_systems(names, learned, strengths, loaded.network, force, other_model)
    drawn = len(texts) * seeds * (1 + sum(system.strength != 0 for system in systems))
    with worked_in(out, settings_of_pictures(loaded, systems, plan), force):
        with progress_bar("drawing", drawn) as advance:
            found = judge_pictures(loaded, systems, plan, None if out is None else out / PARTS, advance)
        show(found, json)
        report = found.as_json() | {"files": {"prompts": prompts, "interventions": interventions}}
        if out is not None:
            with result(out, EVALUATION) as beside:
                write_json(beside, report, "evaluate")
            with result(out, TABLE) as beside:
                write_text(beside, markdown(found))
            try:
                with result(out, PLOT) as beside:
                    plot_effect_and_damage(found.rows, beside, "concept", "img_score")
            except LineasError as error:
                say(json).print(str(error))
    write_json(json, report, "evaluate")
