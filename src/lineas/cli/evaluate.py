"""`lineas evaluate`: measure effect and damage of interventions at several strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineas.checks import COUNT, SHOTS, STRENGTH, TOGETHER
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    OtherModelOption,
    RepetitionOption,
    TemperatureOption,
    TokensOption,
    TopPOption,
    accepts_other,
    load_interventions,
    model_for,
    progress_bar,
    screen_for,
    text_model_for,
    write_json,
)
from lineas.cli.evaluation_options import (
    EVALUATION,
    KIND,
    PARTS,
    PLOT,
    TABLE,
    ClassifierOption,
    JudgeOption,
    LimitOption,
    NegativeOption,
    NeutralOption,
    PositiveOption,
    PromptsOption,
    SeedsOption,
    ShowsOption,
    evaluation_folder,
    names_of,
    old_settings,
    parts_of,
    plan_of,
    print_table,
    refuse_beside_shows,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.terminal import list_aside
from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate as measure
from lineas.evaluation.evaluate import settings_of
from lineas.evaluation.lm_harness import check_tasks
from lineas.evaluation.results import Evaluation
from lineas.evaluation.variants import Adapted, Prompted, systems_of
from lineas.files.working_folder import check_claim, result
from lineas.files.writing import write_text
from lineas.measures import first_of
from lineas.models.image import ImageModel
from lineas.reporting.plots import plot_effect_and_damage
from lineas.reporting.tables import failures, markdown


def evaluate(
    prompts: PromptsOption = None,
    neutral: NeutralOption = None,
    model: ModelArgument = None,
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
    classifiers: ClassifierOption = None,
    positive: PositiveOption = None,
    negative: NegativeOption = None,
    shows: ShowsOption = None,
    picture_judge: JudgeOption = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="NAME ...", help="Tasks of lm-eval to run, such as mmlu.")
    ] = None,
    task_path: Annotated[str | None, typer.Option(metavar="DIR", help="Folder with further task files.")] = None,
    task_limit: Annotated[int | None, number("--task-limit", COUNT, "Stop after N examples of each task.")] = None,
    fewshot: Annotated[
        int | None, number("--fewshot", SHOTS, "Number of examples in the context of a task; default: the task's own.")
    ] = None,
    limit: LimitOption = None,
    seeds: SeedsOption = 1,
    max_new_tokens: TokensOption = 32,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 0.3,
    repetition_penalty: RepetitionOption = 1.2,
    batch_size: Annotated[int, number("--batch-size", TOGETHER, "Number of prompts to continue together.")] = 64,
    dtype: DtypeOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for results; an interrupted evaluation goes on there.")
    ] = None,
    json: JsonOption = None,
    force: ForceOption = False,
    other_model: OtherModelOption = False,
) -> None:
    """Measure effect (classifiers of continuations) and damage (perplexity, divergence, tasks) at each strength."""
    inputs = [prompts, neutral, model, intervention, adapter, positive, negative, task_path]
    check_outputs("evaluate", json, Output("--out", out, None), force=force, inputs=inputs)
    if out is not None:
        check_claim(out, KIND, old_settings)
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
    with evaluation_folder(out, settings_of(loaded, systems, plan, out), force):
        with progress_bar("measuring" if shows is None else "drawing", total) as advance:
            evaluation = measure(loaded, systems, plan, out / PARTS if out else None, advance)
        print_table(evaluation, json)
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
