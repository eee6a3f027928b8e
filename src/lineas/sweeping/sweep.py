"""`sweep`: learn with several penalties gamma, judge each result, and choose the sparsest that has the effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lineas.checks import COUNT, SEEDS, STRENGTH, as_bytes, as_texts
from lineas.errors import LineasError
from lineas.evaluation.plan import Plan
from lineas.evaluation.result_cache import content_of
from lineas.files.ownership import written_by
from lineas.files.strict_json import dumps
from lineas.files.working_folder import result
from lineas.files.writing import write_text
from lineas.intervention.intervention import Intervention
from lineas.learning import LinEAS, Method, check_sides
from lineas.learning.gamma_path import check_gammas, for_path, later_steps
from lineas.learning.method import settings_of
from lineas.printable import as_label, escaped
from lineas.prompts import described, draw
from lineas.sites import Pooling, as_pooling
from lineas.sweeping.folder import CHOSEN, PLOT, SWEEP, TABLE, claimed, copy, give_up
from lineas.sweeping.jobs import Job, points
from lineas.sweeping.report import markdown, plot
from lineas.sweeping.summary import Line, aim_of, choose, chosen_point, effect_of, summary
from lineas.sweeping.workers import Where, run_jobs
from lineas.versions import stamp

GAMMAS = (0.0, 1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
STEPS = 60
"""Default number of optimizer steps for the first gamma."""


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep.

    Args:
        folder: folder of the results.
        lines: lines of the table: the untouched model, then each method by gamma.
        chosen: chosen line; None if none has the effect.
        effect: name of the measure that should change; None if no effect was measured.
        points: all measured points.
        draw: draw of the prompts from which the chosen intervention was learned; None without one.
        notes: sentences about outputs that could not be written.
    """

    folder: Path
    lines: list[Line]
    chosen: Line | None
    effect: str | None
    points: list[dict[str, Any]] = field(repr=False)
    draw: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def intervention(self) -> Intervention:
        """The chosen intervention.

        Raises:
            LineasError: when nothing was chosen.
        """
        if self.chosen is None:
            raise LineasError(f"nothing was chosen in {self.folder}: {self.why_nothing}")
        return Intervention.load(self.folder / CHOSEN)

    @property
    def why_nothing(self) -> str:
        """The reason why nothing was chosen, a sentence."""
        if self.effect is None:
            return "there is no measure of the effect; give --prompts, and for pictures also --shows."
        name, aim = aim_of(self.effect)
        measured = list(dict.fromkeys(key for row in self.points for key in row["values"]))
        if name not in measured:
            return f"{name} was not measured; --effect is one of {', '.join(measured)}."
        return f"no point {({1: 'raises', -1: 'lowers', 0: 'changes'})[aim]} {name}."


def sweep(
    model: str | None,
    source: Sequence[str],
    target: Sequence[str],
    plan: Plan,
    out: str | Path,
    *,
    methods: Mapping[str, Method] | None = None,
    gammas: Sequence[float] = GAMMAS,
    draws: int = 1,
    samples: int | None = None,
    refit: bool = False,
    strengths: Sequence[float] = (1.0,),
    effect: str | None = None,
    tolerance: float = 0.2,
    sites: str | None = None,
    pooling: Pooling = "mean",
    max_length: int = 128,
    memory: int | str | None = None,
    dtype: str = "auto",
    processes: int = 1,
    where: Where = "processes",
    files: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Learn with several penalties gamma, judge each result, and choose the sparsest that has the effect.

    Results are written into the folder as soon as they exist, so the same call goes on where an earlier one ended.

    Args:
        model: hub id or folder, which every process loads; None for the default model.
        source: prompts of the behaviour to leave.
        target: prompts of the behaviour to reach.
        plan: measurements at each point, with classifiers and judge by name, so that other processes can load them.
        out: folder of the sweep.
        methods: methods of learning by name; default: `LinEAS(steps=60)` as "lineas". Only LinEAS has a gamma.
        gammas: weights of the penalty, each of which gives a point.
        draws: number of random draws of the prompts to learn from; default: 1.
        samples: number of prompts of each side in a draw; None for all.
        refit: whether each result is learned again without the penalty, on the same neurons.
        strengths: strengths to judge, without 0, since the untouched model is always judged; default: 1.
        effect: measure that should change, with "+" before it if it should rise; default: the first of the plan.
        tolerance: share of the best effect that the choice may lose, from 0 to below 1; default: 0.2.
        sites: regular expression over names of modules; None for the method's own.
        pooling: pooling over tokens or pixels, "mean" (default) or "max", as in `lineas.learn`.
        max_length: largest number of tokens of a prompt; default: 128.
        memory: memory for learning in each process, as in `lineas.learn`.
        dtype: type of the weights, as in `lineas.load`.
        processes: number of processes, each of which loads the model; default: 1.
        where: "processes" on this machine (default), or "ray" for a Ray cluster that sees the folder.
        files: files of the prompts by side ("source", "target"), which are recorded.
        force: whether to start again in a folder that holds a sweep of other settings.
        progress: function that is called with the number of points done since the last call, and of all points.

    Raises:
        LineasError: when an argument makes no sense, the folder holds something else, or a job fails.
    """
    methods = {"lineas": LinEAS(steps=STEPS)} if methods is None else methods
    methods = {name: for_path(one) if isinstance(one, LinEAS) else one for name, one in methods.items()}
    gammas, strengths = check_gammas(gammas), sorted({STRENGTH.check("strength", one) for one in strengths})
    if where not in ("processes", "ray"):
        raise LineasError(f"--where (where=...) is processes or ray, not '{where}'.")
    if not 0 <= tolerance < 1:
        raise LineasError(f"--tolerance (tolerance=...) is a share from 0 to below 1, not {tolerance:g}.")
    if 0 in strengths:
        raise LineasError(
            f"--strength takes numbers other than 0, not {' '.join(map(as_label, strengths))}; the untouched model is "
            "judged anyway."
        )
    if effect is not None and aim_of(effect)[0] not in plan.measures:
        measures = ", ".join(plan.measures) or "nothing; give --prompts FILE, --neutral FILE or both"
        raise LineasError(f"--effect is one of what is measured, perhaps with + before it, not {effect!r}: {measures}.")
    draws, samples = SEEDS.check("draws", draws), samples if samples is None else COUNT.check("samples", samples)
    source, target = as_texts("the source", source), as_texts("the target", target)
    sides = [(draw(source, samples, seed), draw(target, samples, seed)) for seed in range(draws)]
    check_sides(*sides[0])
    options: dict[str, Any] = {"sites": sites, "pooling": as_pooling(pooling), "max_length": max_length}
    options |= {} if memory is None else {"memory": as_bytes(memory)}
    files, out = dict(files or {}), Path(out)
    judges = [*plan.names["classifiers"].values(), plan.names["judge"]]
    settings = {
        "model": model,
        "dtype": dtype,
        "source": {"file": files.get("source"), **described(source)},
        "target": {"file": files.get("target"), **described(target)},
        "samples": samples,
        "draws": draws,
        "gamma": gammas,
        "methods": {name: settings_of(method) for name, method in methods.items()},
        "refit": refit,
        "strengths": strengths,
        "options": options,
        "measures": {**plan.described(), **plan.names},
        "content": {name: content_of(name, out) for name in (model, *judges) if name},
    }
    with claimed(out, settings, force) as (is_new, lock):
        place, name_of_model = out, model
        if where == "ray":  # its workers may run in another folder
            place = out.resolve()
            name_of_model = str(Path(model).resolve()) if model is not None and Path(model).exists() else model
        learned = [
            Job(
                place, name_of_model, plan, method=recipe, name=name, source=sides[seed][0], target=sides[seed][1],
                seed=seed, gammas=gammas, refit=refit, strengths=strengths, options=options, dtype=dtype, files=files,
                samples=samples,
            )
            for name, recipe in methods.items()
            for seed in range(draws)
        ]  # fmt: skip
        jobs = [Job(place, name_of_model, plan, dtype=dtype), *learned]
        total = sum(job.count for job in jobs)
        try:
            run_jobs(jobs, processes, where, (lambda count: progress(count, total)) if progress else None, lock)
        except LineasError:
            if is_new and not any(points(job.place) for job in learned):
                give_up(out, jobs)
            raise
        rows = [row for job in jobs for row in points(job.place)]
        lines = summary(rows, effect)
        chosen = choose(lines, tolerance)
        name_of_effect = effect_of(rows) if effect is None else aim_of(effect)[0]
        swept = Sweep(out, lines, chosen, effect if chosen is None and effect else name_of_effect, rows)
        return _write(swept, settings, methods, tolerance)


def _write(swept: Sweep, settings: dict[str, Any], methods: Mapping[str, Method], tolerance: float) -> Sweep:
    """Write the results and the chosen intervention into the folder, and return them with the notes."""
    out, lines, chosen = swept.folder, swept.lines, swept.chosen
    content: dict[str, Any] = {"settings": settings, **stamp()}
    content |= {"lines": [asdict(line) for line in lines], "points": swept.points}
    seed, notes = None, []
    if chosen is not None:
        assert swept.effect is not None
        point = chosen_point(swept.points, chosen, swept.effect)
        seed, folder = point["seed"], point["folder"]
        copy(out / folder, out / CHOSEN)
        content["chosen"] = {"line": asdict(chosen), "folder": folder, "tolerance": tolerance, "effect": swept.effect}
    with result(out, SWEEP) as beside:
        write_text(beside, escaped(dumps({"written_by": written_by("sweep"), **content}, gaps=True)) + "\n")
    with result(out, TABLE) as beside:
        write_text(beside, markdown(lines, chosen, _about(settings, methods, chosen, tolerance)))
    try:
        with result(out, PLOT) as beside:
            plot(lines, beside, swept.effect and aim_of(swept.effect)[0])
    except LineasError as error:
        notes.append(str(error))
    return Sweep(out, lines, chosen, swept.effect, swept.points, seed, notes)


def _about(settings: dict[str, Any], methods: Mapping[str, Method], chosen: Line | None, tolerance: float) -> str:
    """Return the sentences under the table."""
    about = f"{settings['model'] or 'the default model'}, {settings['draws']} draws, ± their standard deviation."
    for name, method in methods.items():
        if isinstance(method, LinEAS):
            later = later_steps(method.steps, len(settings["gamma"]))
            about += f" Steps of {name}: {method.steps} for the first gamma, then {later} for each."
    if chosen is not None:
        about += f" Chosen, within {tolerance:.0%} of the best effect: {chosen.label}."
    return about
