"""`lineas sweep`: learn with several penalties gamma, judge the results, and choose the sparsest with the effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas import signals
from lineas.checks import LOSS, PROCESSES, SEEDS, STEPS, STRENGTH, WEIGHT
from lineas.cli import options
from lineas.cli.common import progress_bar, screen_for, write_json
from lineas.cli.method_options import METHODS, method_of, with_method_options
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.plan import plan_of
from lineas.cli.terminal import list_aside
from lineas.errors import LineasError
from lineas.evaluation.plan import Plan
from lineas.files.strict_json import loads, read_bytes
from lineas.files.working_folder import check_claim
from lineas.measures import measure, value_text
from lineas.models.quiet import no_bars
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.sites import as_pooling
from lineas.sweeping.folder import CHOSEN, KIND, SWEEP, old_settings
from lineas.sweeping.summary import Line, aim_of
from lineas.sweeping.sweep import GAMMAS, Sweep
from lineas.sweeping.sweep import STEPS as FIRST_STEPS
from lineas.sweeping.sweep import sweep as run_sweep


@with_method_options("lambda_1", "lambda_g")
def sweep(
    source: options.Source,
    target: options.Target,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for results; an interrupted sweep goes on there.")],
    model: options.PlainModel = None,
    gamma: Annotated[
        list[float] | None,
        number("--gamma", WEIGHT, "Weights of the penalty; default: 0 and nine from 1e-5 to 1e-2.", several="G"),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"Methods of learning, separated by commas: {', '.join(METHODS)}.")
    ] = "lineas",
    draws: Annotated[int, number("--draws", SEEDS, "Number of random draws of the prompts to learn from.")] = 1,
    samples: options.Samples = None,
    steps: Annotated[
        int, number("--steps", STEPS, "Optimizer steps for the first gamma; the others share twice as many.")
    ] = FIRST_STEPS,
    settings: Any = None,
    sites: options.Sites = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Learn each result again without the penalty, on the same neurons.")
    ] = False,
    strength: Annotated[
        list[float] | None,
        number("--strength", STRENGTH, "Strengths to judge beside 0, the untouched model; default: 1.", several="S"),
    ] = None,
    prompts: options.Prompts = None,
    neutral: options.Neutral = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Measures to take, separated by commas: columns, perplexity, concept; default: all."
        ),
    ] = None,
    classifiers: options.Classifier = None,
    shows: options.Shows = None,
    picture_judge: options.Judge = None,
    seeds: options.Seeds = 1,
    limit: options.Limit = None,
    effect: Annotated[
        str | None,
        typer.Option(metavar="MEASURE", help="Measure to change, such as toxic_score; +NAME if it should rise."),
    ] = None,
    tolerance: Annotated[
        float, number("--tolerance", LOSS, "Share of the best effect that the choice may lose.")
    ] = 0.2,
    processes: Annotated[int, number("--jobs", PROCESSES, "Number of processes; each loads the model.")] = 1,
    where: Annotated[
        str, typer.Option(help="Place of the jobs: processes on this machine, or ray, a cluster that sees the folder.")
    ] = "processes",
    pooling: options.Pooling = "mean",
    max_length: options.MaxLength = 128,
    memory: options.Memory = None,
    dtype: options.Dtype = "auto",
    json: options.Json = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start again in a folder that holds a sweep of other settings.")
    ] = False,
) -> None:
    """Learn with several penalties gamma, judge each result, and choose the sparsest that has the effect."""
    place = Output("--out", out, None)
    check_outputs("sweep", json, place, force=force, inputs=[source, target, prompts, neutral, model])
    check_claim(out, KIND, old_settings)
    names = [name.strip() for name in method.split(",") if name.strip()] or [method]
    if "lineas" not in names and any(value is not None for value in settings.values()):
        raise LineasError(
            f"--lambda-1 and --lambda-g are for the method lineas, which is not among the methods {', '.join(names)}."
        )
    methods = {name: method_of(name, {"steps": steps, **settings} if name == "lineas" else {}) for name in names}
    plan = plan_of(prompts, neutral, classifiers, shows=shows, judge=picture_judge, seeds=seeds, limit=limit)
    plan = _restricted(plan, measures)
    if effect is not None and shows is not None and measure(effect.removeprefix("+")).name not in plan.measures:
        raise LineasError(f"--effect {effect} is about texts; leave it out, or leave out --shows.")
    sides = read_prompts(source), read_prompts(target)
    no_bars()
    signals.if_interrupted(f"interrupted; what was learned and measured is kept, the same command goes on in {out}.")
    with progress_bar("sweeping", None) as advance:
        result = run_sweep(
            model, *sides, plan, out,
            methods=methods, gammas=gamma or GAMMAS, draws=draws, samples=samples, refit=refit,
            strengths=strength or (1.0,), effect=effect, tolerance=tolerance, sites=sites, pooling=as_pooling(pooling),
            max_length=max_length, memory=memory, dtype=dtype, processes=processes, where=where,  # pyright: ignore[reportArgumentType]
            files={"source": source, "target": target}, force=force,
            progress=lambda count, total: advance(count, "", total),
        )  # fmt: skip
    _print_result(result, json)
    if json is not None:
        write_json(json, loads(read_bytes(out / SWEEP)), "sweep")
    failed = [
        f"{row['method']} {row['gamma']}, {name}: {reason}"
        for row in result.points
        for name, reason in row["errors"].items()
    ]
    if failed:
        list_aside(f"not measured: {failure}" for failure in failed)
        raise typer.Exit(1)


def _restricted(plan: Plan, names: str | None) -> Plan:
    """Return a plan that takes only these measures, if a sweep can take them; None for all."""
    columns, pictures = list(plan.classifiers), plan.concept is not None
    possible = ["concept"] if pictures else [*columns, *(["perplexity"] if plan.neutral else [])]
    if names is None:
        return plan
    measures = [measure(name.strip()).name for name in names.split(",")]
    for name in measures:
        if name not in possible:
            need = {"concept": "--shows", "perplexity": "--neutral", "toxic": "--prompts and a --classifier"}.get(name)
            problem = f" needs {need}" if need else f" is not among {', '.join(possible)}"
            raise LineasError(f"--measures: {name}{problem}.")
    if pictures:
        return plan
    classifiers = {column: one for column, one in plan.classifiers.items() if column in measures}
    neutral = plan.neutral if "perplexity" in measures else ()
    return replace(plan, prompts=plan.prompts if classifiers else (), classifiers=classifiers, neutral=neutral)


def _print_result(result: Sweep, json: Path | None) -> None:
    screen, chosen, effect = screen_for(json), result.chosen, result.effect
    screen.print(_table(result.lines, chosen, effect and aim_of(effect)[0]))
    if chosen is None:
        screen.print(f"nothing was chosen: {result.why_nothing}", soft_wrap=True)
    else:
        assert effect is not None
        use = "" if chosen.strength == 1 else f"; use it with --strength {as_label(chosen.strength)}"
        untouched = next((line for line in result.lines if "support" not in line.values), None)
        change = " -> ".join(value_text(line.values, effect) for line in (untouched, chosen) if line is not None)
        screen.print(
            f"chosen: {chosen.label} ({effect} {change}), {result.folder / CHOSEN} (draw {result.draw}){use}",
            soft_wrap=True,
        )
    for note in result.notes:
        screen.print(note)


def _table(lines: list[Line], chosen: Line | None, effect: str | None) -> Table:
    """Return the table for the screen, with the chosen line in bold."""
    others = [name for name in ("perplexity", "img_score") if any(name in line.values for line in lines)]
    table = Table(box=None, header_style="bold")
    for name in ("", "neurons", "sites", *([effect, "share of it"] if effect else []), *others, "cost", "unmet"):
        table.add_column(name.replace("_", " "), overflow="fold")
    for line in lines:
        values = line.values
        cells = [line.label, f"{values['support']:.2%}" if "support" in values else "", value_text(values, "sites")]
        if effect:
            cells.append(value_text(values, effect))
            cells.append("" if line.share is None or "support" not in values else f"{line.share:.0%}")
        cells += [value_text(values, name) for name in (*others, "cost", "unmet")]
        table.add_row(*cells, style="bold" if line == chosen else None)
    return table
