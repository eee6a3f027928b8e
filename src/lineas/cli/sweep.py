"""`lineas sweep`: interventions along gamma, judged; the smallest that does the job is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas import signals
from lineas.checks import COUNT, LOSS, PROCESSES, SEEDS, STEPS, STRENGTH, WEIGHT
from lineas.cli.common import DtypeOption, JsonOption, progress_bar, say, write_json
from lineas.cli.evaluation_options import (
    ClassifierOption,
    JudgeOption,
    LimitOption,
    NeutralOption,
    PromptsOption,
    SeedsOption,
    ShowsOption,
    plan_of,
)
from lineas.cli.method_options import (
    METHODS,
    MaxLengthOption,
    MemoryOption,
    PoolingOption,
    SitesOption,
    method_of,
    with_method_options,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs
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
    source: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to leave.")],
    target: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to reach.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the sweep; the same command goes on there.")],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Hub id or folder; default: SmolLM2-135M.")
    ] = None,
    gamma: Annotated[
        list[float] | None,
        number("--gamma", WEIGHT, "Weights of the penalty; default: 0 and nine from 1e-5 to 1e-2.", several="G"),
    ] = None,
    method: Annotated[str, typer.Option(help=f"One or several, with commas: {', '.join(METHODS)}.")] = "lineas",
    draws: Annotated[int, number("--draws", SEEDS, "Number of draws of the prompts, each learned from anew.")] = 1,
    samples: Annotated[int | None, number("--samples", COUNT, "Prompts a side of every draw; default: all.")] = None,
    steps: Annotated[
        int, number("--steps", STEPS, "Optimizer steps of the first solution; the others share twice as many.")
    ] = FIRST_STEPS,
    settings: Any = None,
    sites: SitesOption = None,
    refit: Annotated[bool, typer.Option("--refit", help="Learn every support once more without the penalty.")] = False,
    strength: Annotated[
        list[float] | None,
        number("--strength", STRENGTH, "Judge everything at these strengths; default: 1.", several="S"),
    ] = None,
    prompts: PromptsOption = None,
    neutral: NeutralOption = None,
    measures: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Columns of classifiers, perplexity, concept; default: all."),
    ] = None,
    classifiers: ClassifierOption = None,
    shows: ShowsOption = None,
    picture_judge: JudgeOption = None,
    seeds: SeedsOption = 1,
    limit: LimitOption = None,
    effect: Annotated[
        str | None,
        typer.Option(metavar="MEASURE", help="Measure to optimise, e.g. toxic_score; +NAME if higher is better."),
    ] = None,
    tolerance: Annotated[
        float, number("--tolerance", LOSS, "Share of the best effect that the choice may lose.")
    ] = 0.2,
    processes: Annotated[int, number("--jobs", PROCESSES, "Number of processes at once; each loads the model.")] = 1,
    where: Annotated[
        str, typer.Option(help="Where jobs run: processes here, or ray, a cluster that sees the folder.")
    ] = "processes",
    pooling: PoolingOption = "mean",
    max_length: MaxLengthOption = 128,
    memory: MemoryOption = None,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew in a folder of a sweep of other settings.")
    ] = False,
) -> None:
    """Learn along gamma, judge every point, and choose the sparsest that keeps the effect."""
    place = Output("--out", out, None)
    check_outputs("sweep", json, place, force=force, inputs=[source, target, prompts, neutral, model])
    check_claim(out, KIND, old_settings)
    names = [name.strip() for name in method.split(",") if name.strip()] or [method]
    if "lineas" not in names and any(value is not None for value in settings.values()):
        raise LineasError(f"--lambda-1 and --lambda-g are lineas's, which is not among the methods {', '.join(names)}.")
    methods = {name: method_of(name, {"steps": steps, **settings} if name == "lineas" else {}) for name in names}
    plan = plan_of(prompts, neutral, classifiers, shows=shows, judge=picture_judge, seeds=seeds, limit=limit)
    plan = _only(plan, measures)
    if effect is not None and shows is not None and measure(effect.removeprefix("+")).name not in plan.measures:
        raise LineasError(f"--effect {effect} is about texts; leave it out, or leave out --shows.")
    no_bars()
    signals.keeps(f"interrupted; what was learned and measured is kept, the same command goes on in {out}.")
    with progress_bar("sweeping", None) as advance:
        found = run_sweep(
            model, read_prompts(source), read_prompts(target), plan, out,
            methods=methods, gammas=gamma or GAMMAS, draws=draws, samples=samples, refit=refit,
            strengths=strength or (1.0,), effect=effect, tolerance=tolerance, sites=sites, pooling=as_pooling(pooling),
            max_length=max_length, memory=memory, dtype=dtype, processes=processes, where=where,  # pyright: ignore[reportArgumentType]
            files={"source": source, "target": target}, force=force,
            progress=lambda count, total: advance(count, "", total),
        )  # fmt: skip
    _say(found, json)
    if json is not None:
        write_json(json, loads(read_bytes(out / SWEEP)), "sweep")
    failed = [
        f"{row['method']} {row['gamma']}, {name}: {why}" for row in found.points for name, why in row["errors"].items()
    ]
    if failed:
        list_aside(f"not measured: {failure}" for failure in failed)
        raise typer.Exit(1)


def _only(plan: Plan, names: str | None) -> Plan:
    """Return a plan of these measures alone.

    Raises:
        LineasError: when one is no measure of sweeps, or what it is measured on is missing.
    """
    columns, pictures = list(plan.classifiers), plan.concept is not None
    possible = ["concept"] if pictures else [*columns, *(["perplexity"] if plan.neutral else [])]
    if names is None:
        return plan
    wanted = [measure(name.strip()).name for name in names.split(",")]
    for name in wanted:
        if name not in possible:
            need = {"concept": "--shows", "perplexity": "--neutral", "toxic": "--prompts and a --classifier"}.get(name)
            hint = f" needs {need}" if need else f" is not among {', '.join(possible)}"
            raise LineasError(f"--measures: {name}{hint}.")
    if pictures:
        return plan
    kept = {column: one for column, one in plan.classifiers.items() if column in wanted}
    spared = plan.neutral if "perplexity" in wanted else ()
    return replace(plan, prompts=plan.prompts if kept else (), classifiers=kept, neutral=spared)


def _say(found: Sweep, json: Path | None) -> None:
    """Show the table and the choice."""
    talk, chosen, effect = say(json), found.chosen, found.effect
    talk.print(_table(found.lines, chosen, effect and aim_of(effect)[0]))
    if chosen is None:
        talk.print(f"nothing was chosen: {found.why_nothing}", soft_wrap=True)
    else:
        assert effect is not None
        use = "" if chosen.strength == 1 else f"; use it with --strength {as_label(chosen.strength)}"
        untouched = next((line for line in found.lines if "support" not in line.values), None)
        change = " -> ".join(value_text(line.values, effect) for line in (untouched, chosen) if line is not None)
        talk.print(
            f"chosen: {chosen.label} ({effect} {change}), {found.folder / CHOSEN} (draw {found.draw}){use}",
            soft_wrap=True,
        )
    for note in found.notes:
        talk.print(note)


def _table(lines: list[Line], chosen: Line | None, effect: str | None) -> Table:
    """On the screen."""
    others = [name for name in ("perplexity", "img_score") if any(name in line.values for line in lines)]
    table = Table(box=None, header_style="bold")
    for name in ("", "neurons", "sites", *([effect, "of it"] if effect else []), *others, "cost", "unmet"):
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
