"""One job of a sweep: what one method makes of one draw of prompts, along gamma where it has one, each point judged.

A job is plain data, so any process on any machine that sees the folder can run it, and go on where another one ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lineas.evaluation.measures import Measures
from lineas.evaluation.systems import Steered, Untouched
from lineas.intervention import Intervention
from lineas.learning import LinEAS, Method, learn
from lineas.learning.interruption import whole_or_nothing
from lineas.learning.paths import path
from lineas.models import load

POINTS, PARTS = "points.jsonl", "parts"
UNTOUCHED = "untouched"
MEASURED = ("values", "by_seed", "intervals", "errors")
"""What of an evaluation's row stands in a point."""


@dataclass(frozen=True)
class Job:
    """What one process does.

    Args:
        folder: of the sweep, seen by every process.
        model: a name that `lineas.load` knows.
        method: how; None for the untouched model.
        name: of the method, as the user calls it.
        source: prompts of this seed.
        target: prompts of this seed.
        seed: of the draw and of learning.
        gammas: the path; used by LinEAS alone.
        measures: at every point.
        refit: whether the support of every point with a penalty is learned once more without it.
        strengths: at which everything that is learned is judged, each a point.
        options: further arguments of `lineas.learn`.
        dtype: of the model.
        threads: of the process; None leaves them.
    """

    folder: Path
    model: str | None
    method: Method | None
    name: str
    source: Sequence[str]
    target: Sequence[str]
    seed: int
    gammas: Sequence[float]
    measures: Measures
    refit: bool = False
    strengths: Sequence[float] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    threads: int | None = None

    @property
    def place(self) -> Path:
        """The folder of its points."""
        return self.folder / (UNTOUCHED if self.method is None else f"{self.name}-{self.seed}")

    @property
    def count(self) -> int:
        """How many points it has."""
        return len(self._points)

    def missing(self) -> dict[tuple[float | None, bool], list[float]]:
        """The strengths at which what is learned is still to be judged, by gamma and whether it is refitted."""
        done = {(one["gamma"], one["refit"], one["strength"]) for one in points(self.place)}
        left: dict[tuple[float | None, bool], list[float]] = {}
        for gamma, refit, strength in self._points:
            if (gamma, refit, strength) not in done:
                left.setdefault((gamma, refit), []).append(strength)
        return left

    @property
    def _points(self) -> list[tuple[float | None, bool, float]]:
        """Gamma, whether it is refitted, and strength of every point."""
        kinds: list[tuple[float | None, bool]] = [(None, False)]
        if isinstance(self.method, LinEAS):
            kinds = [(g, refit) for g in self.gammas for refit in (False, True) if not refit or (self.refit and g > 0)]
        strengths = (1.0,) if self.method is None else self.strengths
        return [(*kind, strength) for kind in kinds for strength in strengths]


def points(place: Path) -> list[dict[str, Any]]:
    """The points of a job that are done, each once; a line that an end of the process cut off is none."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    file = place / POINTS
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[point["gamma"], point["refit"], point["strength"]] = point  # two processes may have made the same
    return list(found.values())


@whole_or_nothing()
def run_job(job: Job, model: Any = None, progress: Callable[[int], None] | None = None) -> int:
    """Do what is not done yet of a job; gives the number of its points.

    Args:
        job: what to do.
        model: loaded already; None loads it.
        progress: called with 1 after every point.
    """
    if missing := job.missing():
        if job.threads is not None:
            import torch

            torch.set_num_threads(job.threads)
        model = load(job.model, dtype=job.dtype) if model is None else model
        for point, learned in _learned(job, model, missing):
            for strength in missing[point["gamma"], point["refit"]]:
                system = Untouched() if learned is None else Steered(job.name, learned, strength)
                row = job.measures.of(model, system, job.folder / PARTS)
                told = {key: value for key, value in asdict(row).items() if key in MEASURED}
                about = {"method": job.name, "seed": job.seed, **point, "strength": strength}
                _append(job.place / POINTS, {**about, **told})
                if progress:
                    progress(1)
    return job.count


def _append(file: Path, point: dict[str, Any]) -> None:
    """A line more, also after one that was cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n" * cut_off + json.dumps(point) + "\n")


def _learned(
    job: Job, model: Any, missing: Collection[tuple[float | None, bool]]
) -> Iterator[tuple[dict[str, Any], Intervention | None]]:
    """Whatever is not judged at every strength, learned, or read where that was done."""
    if job.method is None:
        yield {"gamma": None, "refit": False}, None
        return
    options = {"seed": job.seed, "progress": False, **job.options}
    if not isinstance(job.method, LinEAS):
        started = time.perf_counter()
        learned = learn(model, job.source, job.target, job.method, **options)
        yield _kept(job, learned, None, False, started, {"cost": learned.facts["cost"][-1]}), learned
        return
    started = time.perf_counter()
    known = {
        gamma: Intervention.load(_place(job, gamma, False))
        for gamma in job.gammas
        if _place(job, gamma, False).exists()
    }
    for solution in path(model, job.source, job.target, job.gammas, job.method, known=known, **options):
        if (solution.gamma, False) in missing:
            facts = {"cost": solution.cost, "unmet": solution.unmet, "steps": solution.steps}
            yield _kept(job, solution.intervention, solution.gamma, False, started, facts), solution.intervention
        if (solution.gamma, True) in missing:
            started = time.perf_counter()
            recipe = replace(job.method, gamma=0.0, refit=False, steps=solution.steps)
            again = learn(
                model, job.source, job.target, recipe, start=solution.intervention, within_support=True, **options
            )
            facts = {"cost": again.facts["cost"][-1], "steps": solution.steps}
            yield _kept(job, again, solution.gamma, True, started, facts), again
        started = time.perf_counter()


def _place(job: Job, gamma: float | None, refit: bool) -> Path:
    return job.place / (("learned" if gamma is None else f"gamma-{float(gamma)}") + ("-refit" if refit else ""))


def _kept(
    job: Job, learned: Intervention, gamma: float | None, refit: bool, started: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """Save an intervention; gives what is said of it."""
    seconds = learned.facts.get("seconds", time.perf_counter() - started)  # where it was there, of its learning
    folder = _place(job, gamma, refit)
    named = learned.with_facts(name=f"{job.name}, {folder.name}, draw {job.seed}", seconds=seconds)
    named.save(folder, overwrite=True)
    touched = sum(not map_.is_identity() for map_ in learned.maps.values())
    return {
        "gamma": gamma,
        "refit": refit,
        "folder": str(folder.relative_to(job.folder)),
        "support": learned.support(),
        "sites": touched,
        "of_sites": len(learned.maps),
        "seconds": seconds,
        **facts,
    }
