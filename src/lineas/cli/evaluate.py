"""`lineas evaluate`: measure effect and damage of interventions at several strengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas import signals
from lineas.checks import COUNT, SHOTS, STRENGTH, TOGETHER
from lineas.cli import options
from lineas.cli.common import (
    accepts_other,
    load_interventions,
    model_for,
    names_of,
    parts_of,
    progress_bar,
    screen_for,
    text_model_for,
    write_json,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.plan import plan_of, refuse_beside_shows
from lineas.cli.terminal import list_aside
from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate as measure
from lineas.evaluation.evaluate import settings_of
from lineas.evaluation.lm_harness import check_tasks
from lineas.evaluation.results import Evaluation
from lineas.evaluation.variants import Adapted, Prompted, systems_of
from lineas.files.ownership import FolderKind
from lineas.files.strict_json import loads, read_bytes
from lineas.files.working_folder import check_claim, claimed, give_up, result
from lineas.files.writing import write_text
from lineas.measures import first_of
from lineas.measures import measure as measure_of
from lineas.models.image import ImageModel
from lineas.printable import as_label
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import cell, columns, failures, markdown

EVALUATION, TABLE, PLOT, PARTS = "evaluation.json", "evaluation.md", "effect-damage.png", "parts"
KIND = FolderKind("an evaluation", "evaluation", EVALUATION)


def evaluate(
    prompts: options.Prompts = None,
    neutral: options.Neutral = None,
    model: options.Model = None,
    intervention: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR ...", help="Interventions to judge; a+b applies a, then b. Default: none, the model alone."
        ),
    ] = None,
    strength: Annotated[
        list[float] | None,
        number("--strength", STRENGTH, "Strengths to judge beside 0, the untouched model; default: 1.", several="S"),
    ] = None,
    prompt_baseline: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Also judge the model with this instruction before every text.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(metavar="DIR ...", help="Also judge adapters of peft, such as LoRA.")
    ] = None,
    classifiers: options.Classifier = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    shows: options.Shows = None,
    picture_judge: options.Judge = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="NAME ...", help="Tasks of lm-eval to run, such as mmlu.")
    ] = None,
    task_path: Annotated[str | None, typer.Option(metavar="DIR", help="Folder with further task files.")] = None,
    task_limit: Annotated[int | None, number("--task-limit", COUNT, "Stop after N examples of each task.")] = None,
    fewshot: Annotated[
        int | None, number("--fewshot", SHOTS, "Number of examples in the context of a task; default: the task's own.")
    ] = None,
    limit: options.Limit = None,
    seeds: options.Seeds = 1,
    max_new_tokens: options.Tokens = 32,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 0.3,
    repetition_penalty: options.Repetition = 1.2,
    batch_size: Annotated[int, number("--batch-size", TOGETHER, "Number of prompts to continue together.")] = 64,
    dtype: options.Dtype = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for results; an interrupted evaluation goes on there.")
    ] = None,
    json: options.Json = None,
    force: options.Force = False,
    other_model: options.OtherModel = False,
) -> None:
    """Measure effect (classifiers of continuations) and damage (perplexity, divergence, tasks) at each strength."""
    inputs = [prompts, neutral, model, intervention, adapter, positive, negative, task_path]
    check_outputs("evaluate", json, Output("--out", out, None), force=force, inputs=inputs)
    if out is not None:
        check_claim(out, KIND, _old_settings)
    if shows is not None:
        refuse_beside_shows({"--tasks": tasks, "--adapter": adapter, "--prompt-baseline": prompt_baseline})
    if task_path is not None and not Path(task_path).is_dir():
        raise LineasError(f"there is no folder {task_path}; --task-path names one with task files of lm-eval.")
    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    sampling |= {"repetition_penalty": repetition_penalty, "batch_size": batch_size}
    about_tasks = {"tasks": tasks or [], "task_path": task_path, "task_limit": task_limit, "fewshot": fewshot}
    plan = plan_of(
        prompts, neutral, classifiers, positive, negative, shows=shows, judge=picture_judge, seeds=seeds, limit=limit,
        more={"sampling": sampling, **about_tasks},
    )  # fmt: skip
    if not (plan.prompts or plan.neutral or plan.tasks):
        raise LineasError("there is nothing to measure; give --prompts, --neutral or --tasks.")
    if tasks:
        check_tasks(tasks, task_path)
    learned = {source: load_interventions(parts_of(source)) for source in intervention or []}
    names = names_of([*learned, *map(str, adapter or [])])
    strengths = [0.0, *(s for s in dict.fromkeys(strength or [1.0]) if s != 0)]
    loaded = (text_model_for if shows is None else model_for)(model, next(iter(learned.values()), None), dtype)
    if shows is not None and not isinstance(loaded, ImageModel):
        raise LineasError(f"{loaded.name} is a language model and draws no images; leave out --shows.")
    other = any([accepts_other(other_model, force, one, loaded.network) for one in learned.values()])
    systems = systems_of({names[source]: one for source, one in learned.items()}, strengths, other)
    systems += [Prompted(prompt_baseline)] if prompt_baseline else []
    systems += [Adapted(names[str(folder)], folder, s) for folder in adapter or [] for s in strengths[1:]]
    total = max(1, len(plan.prompts) * seeds * len(systems))
    files = {"prompts": prompts, "neutral": neutral, "interventions": intervention or [], "task_path": task_path}
    files |= {"positive": positive, "negative": negative, "adapters": [str(folder) for folder in adapter or []]}
    with _working_folder(out, settings_of(loaded, systems, plan, out), force):
        with progress_bar("measuring" if shows is None else "drawing", total) as advance:
            evaluation = measure(loaded, systems, plan, out / PARTS if out else None, advance)
        _print_table(evaluation, json)
        report = evaluation.as_json() | {"files": files}
        if out is not None:
            with result(out, EVALUATION) as beside:
                write_json(beside, report, "evaluate")
            with result(out, TABLE) as beside:
                write_text(beside, markdown(evaluation))
            _plot(evaluation, out, json)
            screen_for(json).print(f"wrote {out}: {EVALUATION}, {TABLE}{f', {PLOT}' if (out / PLOT).exists() else ''}")
    write_json(json, report, "evaluate")
    failed = failures(evaluation.rows)
    if failed:
        list_aside(f"not measured: {failure}" for failure in failed)
        raise typer.Exit(1)


def _plot(evaluation: Evaluation, out: Path, json: Path | None) -> None:
    effect, damage = (first_of(role, (row.values for row in evaluation.rows)) for role in ("effect", "damage"))
    if effect is None or damage is None:
        return
    try:
        with result(out, PLOT) as beside:
            plot_effect_and_damage(evaluation.rows, beside, effect.name, damage.name)
    except LineasError as error:
        screen_for(json).print(str(error))


@contextmanager
def _working_folder(out: Path | None, settings: dict[str, Any], force: bool) -> Iterator[None]:
    """Claim the folder of an evaluation within the block; after an interruption the same command goes on there."""
    if out is None:
        yield
        return
    signals.if_interrupted(f"interrupted; what was measured is kept, the same command goes on in {out}.")
    with claimed(out, KIND, settings, force, _old_settings, results=(EVALUATION, TABLE, PLOT)) as (is_new, _):
        try:
            yield
        except LineasError:
            if is_new and not (out / PARTS).exists():  # nothing was measured
                give_up(out)
            raise


def _old_settings(out: Path) -> dict[str, Any] | None:
    """Return settings of an evaluation by lineas 0.1.0, which differ from all of today's; None for another folder."""
    try:
        evaluation = loads(read_bytes(out / EVALUATION))
        return {"version": evaluation["versions"]["lineas"]} if isinstance(evaluation["rows"], list) else None
    except (LineasError, LookupError, TypeError):
        return None


def _print_table(evaluation: Evaluation, json: Path | None) -> None:
    """Print the table, without measures of variety if there are others; the files have all measures."""
    names = columns(evaluation.rows)
    names = [name for name in names if measure_of(name).role != "variety"] or names
    table = Table(box=None, header_style="bold")
    for name in ("system", "strength", *names):
        table.add_column(name.replace("_", " "), no_wrap=name == "system")
    for row in evaluation.rows:
        table.add_row(row.system, as_label(row.strength), *(cell(row, name).split(" [")[0] for name in names))
    screen_for(json).print(table)
