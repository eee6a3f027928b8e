"""`lineas sweep`: interventions along gamma, judged; the smallest that does the job is chosen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas import signals
from lineas.checks import COUNT, LOSS, PROCESSES, SEEDS, STEPS, STRENGTH, TOKENS, WEIGHT, as_bytes
from lineas.cli.common import (
    DtypeOption,
    JsonOption,
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
from lineas.cli.learn import METHODS, method_of
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.terminal import list_aside
from lineas.errors import LineasError
from lineas.evaluation.classifiers import PROFANITY, by_column, classifier
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import content_of
from lineas.files.working_folder import check_claim, result
from lineas.files.writing import write_text
from lineas.learning import check_sides
from lineas.learning.gamma_path import check_gammas, later_steps
from lineas.measures import measure, value_text
from lineas.models.quiet import no_bars
from lineas.printable import as_label
from lineas.prompts import described, draw, read_prompts
from lineas.reporting.sweep_report import markdown, plot
from lineas.sites import as_pooling
from lineas.sweeping import Job, Line, choose, points, run_jobs, summary
from lineas.sweeping.folder import CHOSEN, KIND, PLOT, SWEEP, TABLE, claimed, give_up, keep, old_settings
from lineas.sweeping.summary import aim_of, chosen_point, effect_of
from lineas.versions import stamp

GAMMAS = (0.0, 1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)


def sweep(
    context: typer.Context,
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
    seeds: Annotated[int, number("--seeds", SEEDS, "Draws of the prompts, each a path of its own.")] = 1,
    samples: Annotated[int | None, number("--samples", COUNT, "Prompts a side of every draw; default: all.")] = None,
    steps: Annotated[int, number("--steps", STEPS, "Of the first solution; the others share twice as many.")] = 60,
    lambda_1: Annotated[float | None, number("--lambda-1", WEIGHT, "Weight of single neurons in it; 1.")] = None,
    lambda_g: Annotated[
        float | None, number("--lambda-g", WEIGHT, "Weight of whole groups in it; 1. With 0 supports are smallest.")
    ] = None,
    sites: Annotated[str | None, typer.Option(metavar="REGEX", help="Modules that carry maps.")] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Learn every support once more without the penalty.")] = False,
    strength: Annotated[
        list[float] | None,
        number("--strength", STRENGTH, "Judge everything at these strengths; default: 1.", several="S"),
    ] = None,
    prompts: PromptsOption = None,
    neutral: NeutralOption = None,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Columns of classifiers, perplexity, concept; default: all."),
    ] = None,
    classifiers: ClassifierOption = None,
    shows: ShowsOption = None,
    picture_judge: JudgeOption = None,
    sampling_seeds: Annotated[int, number("--sampling-seeds", SEEDS, "Of the continuations at every point.")] = 1,
    limit: LimitOption = None,
    effect: Annotated[
        str | None,
        typer.Option(metavar="MEASURE", help="That should change, as toxic_score; with + before it if it should rise."),
    ] = None,
    tolerance: Annotated[float, number("--tolerance", LOSS, "What of the best effect the choice may lose.")] = 0.2,
    at_once: Annotated[int, number("--jobs", PROCESSES, "Processes at once; each loads the model.")] = 1,
    on: Annotated[str, typer.Option(help="processes, or ray: a Ray cluster that sees the folder.")] = "processes",
    pooling: Annotated[str, typer.Option(help="mean or max, as in lineas learn.")] = "mean",
    max_length: Annotated[int, number("--max-length", TOKENS, "Tokens of a prompt; the rest is cut.")] = 128,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of each process, beside the weights.")] = None,
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
    if on not in ("processes", "ray"):
        raise LineasError(f"--on is processes or ray, not '{on}'.")
    if tolerance == 1:
        raise LineasError(f"--tolerance is a share from 0 to below 1, not {tolerance:g}.")
    names = [name.strip() for name in method.split(",") if name.strip()] or [method]
    penalty = {"lambda_1": lambda_1, "lambda_g": lambda_g}
    if "lineas" not in names and penalty != dict.fromkeys(penalty):
        raise LineasError(f"--lambda-1 and --lambda-g are lineas's, which is not among the methods {', '.join(names)}.")
    recipes = {name: method_of(name, {"steps": steps, **penalty} if name == "lineas" else {}) for name in names}
    gammas, strengths = check_gammas(gamma or GAMMAS), sorted(set(strength or (1.0,)))
    if 0 in strengths:
        raise LineasError(
            f"--strength takes numbers other than 0, not {' '.join(map(as_label, strengths))}; the untouched model is "
            "judged anyway."
        )
    plan = _plan(evaluate, prompts, neutral, classifiers, shows, picture_judge, sampling_seeds, limit)
    _check_effect(effect, plan, classifiers)
    leave, reach = read_prompts(source), read_prompts(target)
    sides = [(draw(leave, samples, seed), draw(reach, samples, seed)) for seed in range(seeds)]
    check_sides(*sides[0])
    options: dict[str, Any] = {"sites": sites, "pooling": as_pooling(pooling), "max_length": max_length}
    options |= {} if memory is None else {"memory": as_bytes(memory)}
    settings = {
        "model": model,
        "dtype": dtype,
        "source": {"file": source, **described(leave)},
        "target": {"file": target, **described(reach)},
        "samples": samples,
        "seeds": seeds,
        "gamma": gammas,
        "methods": names,
        "steps": steps,
        **penalty,
        "refit": refit,
        "strengths": strengths,
        "options": options,
        "measures": {**plan.described(), **plan.names},
        "content": {
            name: content_of(name, out) for name in (model, picture_judge, *plan.names["classifiers"].values()) if name
        },
    }
    no_bars()
    begun, lock = context.with_resource(claimed(out, settings, force))
    signals.keeps(f"interrupted; what was learned and measured is kept, the same command goes on in {out}.")
    place, found = out, model
    if on == "ray":  # its workers may have been started in another folder
        place = out.resolve()
        found = str(Path(model).resolve()) if model is not None and Path(model).exists() else model
    learned = [
        Job(
            place, found, recipe, name, *sides[seed], seed, gammas, plan, refit, strengths, options, dtype,
            files={"source": source, "target": target}, samples=samples,
        )
        for name, recipe in recipes.items()
        for seed in range(seeds)
    ]  # fmt: skip
    jobs = [Job(place, found, None, "untouched", (), (), 0, gammas, plan, dtype=dtype), *learned]
    try:
        with progress_bar("sweeping", sum(job.count for job in jobs)) as advance:
            run_jobs(jobs, at_once, on, advance, lock)
    except LineasError:
        if begun and not any(points(job.place) for job in learned):
            give_up(out, jobs)
        raise
    rows = [row for job in jobs for row in points(job.place)]
    lines = summary(rows, effect)
    chosen = choose(lines, tolerance)
    aimed = effect_of(rows) if effect is None else aim_of(effect)[0]
    talk = say(json)
    talk.print(_table(lines, chosen, aimed))
    about = f"{model or 'the default model'}, {seeds} draws; ± deviation over them."
    if "lineas" in names:
        about += f" Steps: {steps}, then {later_steps(steps, len(gammas))} a point."
    told: dict[str, Any] = {"settings": settings, **stamp(), "lines": [asdict(line) for line in lines], "points": rows}
    if chosen is not None:
        assert aimed is not None
        point = chosen_point(rows, chosen, aimed)
        keep(out / point["folder"], out / CHOSEN)
        about += f" Chosen, within {tolerance:.0%} of the best effect: {chosen.label}."
        told["chosen"] = {"line": asdict(chosen), "folder": point["folder"], "tolerance": tolerance, "effect": aimed}
        use = "" if chosen.strength == 1 else f"; use it with --strength {as_label(chosen.strength)}"
        untouched = next((line for line in lines if "support" not in line.values), None)
        change = [value_text(line.values, aimed) for line in (untouched, chosen) if line is not None]
        talk.print(
            f"chosen: {chosen.label} ({aimed} {' -> '.join(change)}), {out / CHOSEN} (draw {point['seed']}){use}",
            soft_wrap=True,
        )
    else:
        talk.print(f"nothing was chosen: {_why_nothing(rows, effect or aimed)}", soft_wrap=True)
    with result(out, SWEEP) as beside:
        write_json(beside, told, "sweep")
    with result(out, TABLE) as beside:
        write_text(beside, markdown(lines, chosen, about))
    try:
        with result(out, PLOT) as beside:
            plot(lines, beside, aimed)
    except LineasError as error:
        talk.print(str(error))
    write_json(json, told, "sweep")
    failed = [f"{row['method']} {row['gamma']}, {name}: {why}" for row in rows for name, why in row["errors"].items()]
    if failed:
        list_aside(f"not measured: {failure}" for failure in failed)
        raise typer.Exit(1)


def _plan(
    evaluate: str | None,
    prompts: str | None,
    neutral: str | None,
    classifiers: list[str] | None,
    shows: str | None,
    judge: str | None,
    seeds: int,
    limit: int | None,
) -> Plan:
    """Return what is measured at every point."""
    judged = {} if shows else by_column(classifiers or [PROFANITY])
    needs = {"concept": "shows"} if shows else {**dict.fromkeys(judged, "prompts"), "perplexity": "neutral"}
    given = {"prompts": prompts, "neutral": neutral, "shows": shows}
    possible = [name for name, needed in needs.items() if given[needed]]
    wanted = possible if evaluate is None else [measure(name.strip()).name for name in evaluate.split(",")]
    for name in wanted:
        if name not in needs:
            hint = {"concept": " (concept needs --shows)", "toxic": " (--classifier names none that fills toxic)"}
            raise LineasError(f"what is evaluated is {', '.join(needs)}, not '{name}'{hint.get(name, '')}.")
        if name not in possible:
            raise LineasError(f"evaluating {name} needs --{needs[name]}.")
    if shows and not prompts:
        raise LineasError("there is nothing to draw; give --prompts FILE.")
    judged = {column: name for column, name in judged.items() if column in wanted}
    texts = read_prompts(prompts)[:limit] if prompts and (judged or "concept" in wanted) else []
    sentences = read_prompts(neutral)[:limit] if neutral and "perplexity" in wanted else []
    for name in judged.values():
        classifier(name)  # refused now, not in a worker
    return plan_of(texts, sentences, judged, seeds, shows if "concept" in wanted else None, judge)


def _check_effect(effect: str | None, plan: Plan, classifiers: list[str] | None) -> None:
    """Refuse a measure that is not taken."""
    if effect is not None and aim_of(effect)[0] not in plan.measures:
        of_texts = Plan(["any"], ["any"], by_column(classifiers or [PROFANITY])).measures
        if plan.concept is not None and aim_of(effect)[0] in of_texts:
            raise LineasError(f"--effect {effect} is about texts; leave it out, or leave out --shows.")
        there = ", ".join(plan.measures) or "nothing; give --prompts FILE, --neutral FILE or both"
        raise LineasError(f"--effect is one of what is measured, perhaps with + before it, not {effect!r}: {there}.")


def _why_nothing(rows: list[dict[str, Any]], effect: str | None) -> str:
    if effect is None:
        return "there is no measure of the effect; give --prompts, of pictures also --shows."
    name, aim = aim_of(effect)
    taken = list(dict.fromkeys(key for row in rows for key in row["values"]))
    if name not in taken:
        return f"{name} was not measured; --effect is one of {', '.join(taken)}."
    verb = {1: "raises", -1: "lowers", 0: "changes"}[aim]
    return f"no point {verb} {name}."


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
