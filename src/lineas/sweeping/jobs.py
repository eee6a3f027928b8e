"""One job of a sweep: what one method makes of one draw of prompts, along gamma where it has one, each point judged.

A job is plain data, so any process on any machine that sees the folder can run it, and go on where another one ended.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, Untouched
from lineas.files import strict_json
from lineas.intervention.intervention import Intervention
from lineas.learning import LinEAS, Method, learn
from lineas.learning.gamma_path import gamma_path
from lineas.learning.interruption import discard_partial
from lineas.learning.learn import drawn_from
from lineas.models import load
from lineas.models.digests import reading_weights_once

POINTS, PARTS = "points.jsonl", "parts"
UNTOUCHED = "untouched"
MEASURED = ("values", "by_seed", "intervals", "errors")
"""Parts of an evaluation's row that stand in a point."""
NUMBERS = ("support", "sites", "of_sites", "cost", "unmet", "seconds", "steps")
"""Further numbers of a point, each of which may be missing."""


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
        plan: what is measured at every point, by names alone.
        refit: whether the support of every point with a penalty is learned once more without it.
        strengths: at which everything that is learned is judged, each a point.
        options: further arguments of `lineas.learn`.
        dtype: of the model.
        threads: of the process; None leaves them.
        files: by side, the file it was drawn from, for whoever reads it again.
        samples: that were drawn of it; None for all.
    """

    folder: Path
    model: str | None
    method: Method | None
    name: str
    source: Sequence[str]
    target: Sequence[str]
    seed: int
    gammas: Sequence[float]
    plan: Plan
    refit: bool = False
    strengths: Sequence[float] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    threads: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    samples: int | None = None

    @classmethod
    def untouched(cls, folder: Path, model: str | None, gammas: Sequence[float], plan: Plan, dtype: str) -> Job:
        """Return the job that judges the untouched model."""
        return cls(folder, model, None, UNTOUCHED, (), (), 0, gammas, plan, dtype=dtype)

    @property
    def place(self) -> Path:
        """The folder of its points."""
        return self.folder / (UNTOUCHED if self.method is None else f"{self.name}-{self.seed}")

    @property
    def count(self) -> int:
        """How many points it has."""
        return len(self._points)

    def missing(self) -> dict[tuple[float | None, bool], list[float]]:
        """The strengths at which what is learned is still to be judged, by gamma and whether it is refitted.

        A point of which a measure failed is judged once more.
        """
        done = {(one["gamma"], one["refit"], one["strength"]) for one in points(self.place) if not one.get("errors")}
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
    """The points of a job that are done, each once.

    A line that an end of the process cut off is none; one that no sweep wrote is none either, with a warning.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    file = place / POINTS
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else (), start=1):
        try:
            point = strict_json.loads(line)
        except LineasError:
            if not line.strip() or (line.startswith(b"{") and not line.endswith(b"}")):  # empty, or cut off
                continue
            point = None
        point = _without_gaps(point)
        if _is_point(point):
            found[point["gamma"], point["refit"], point["strength"]] = point  # two processes may have made the same
        else:
            said = f"line {number} of {file} is no point of a sweep; it is passed over, and its point is measured anew."
            warnings.warn(said, stacklevel=2)
    return list(found.values())


def _without_gaps(read: Any) -> Any:
    """A point without the numbers that were none; JSON has null for those."""
    if not isinstance(read, dict) or not isinstance(read.get("values"), dict):
        return read
    values = {name: value for name, value in read["values"].items() if value is not None}
    return {name: v for name, v in read.items() if v is not None or name not in NUMBERS} | {"values": values}


def _is_point(read: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a sweep may have written this: what `summary` and the table take from a point is there."""
    if not isinstance(read, dict) or not isinstance(read.get("values"), dict):
        return False
    numbers = [read.get("strength"), *([] if read.get("gamma") is None else [read["gamma"]]), *read["values"].values()]
    numbers += [read[name] for name in NUMBERS if name in read]
    of_learned = isinstance(read.get("folder"), str) or read.get("method") == UNTOUCHED
    return (
        all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        and "gamma" in read
        and of_learned
        and isinstance(read.get("refit"), bool)
        and isinstance(read.get("method"), str)
        and isinstance(read.get("seed"), int)
        and isinstance(read.get("errors"), dict)
    )


@discard_partial()
@reading_weights_once()
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
        model = _loaded(job.model, job.dtype) if model is None else model
        for point, learned in _learned(job, model, missing):
            for strength in missing[point["gamma"], point["refit"]]:
                system = Untouched() if learned is None else Steered(job.name, learned, strength)
                row = evaluate(model, [system], job.plan, job.folder / PARTS).rows[0]
                told = {key: value for key, value in asdict(row).items() if key in MEASURED}
                about = {"method": job.name, "seed": job.seed, **point, "strength": strength}
                _append(job.place / POINTS, {**about, **told})
                if progress:
                    progress(1)
    return job.count


@lru_cache(maxsize=1)
def _loaded(model: str | None, dtype: str) -> Any:
    """The model of a worker, which has many jobs of one sweep."""
    return load(model, dtype=dtype)


def _append(file: Path, point: dict[str, Any]) -> None:
    """A line more, also after one that was cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n" * cut_off + strict_json.dumps(point, indent=None, gaps=True) + "\n")


def _learned(
    job: Job, model: Any, missing: Collection[tuple[float | None, bool]]
) -> Iterator[tuple[dict[str, Any], Intervention | None]]:
    """Whatever is not judged at every strength, with what is said of it: learned, or read where that was done."""
    if job.method is None:
        yield {"gamma": None, "refit": False}, None
        return
    options = {"seed": job.seed, "progress": False, **job.options}
    if not isinstance(job.method, LinEAS):
        learned = _known(job, None, False)
        if learned is None:
            started = time.perf_counter()
            learned = learn(model, job.source, job.target, job.method, **options)
            learned = _kept(job, learned, None, False, time.perf_counter() - started)
        yield _told(job, learned, None, False, cost=learned.facts["cost"][-1]), learned
        return
    known = {gamma: there for gamma in job.gammas if (there := _known(job, gamma, False)) is not None}
    started = time.perf_counter()
    for solution in gamma_path(model, job.source, job.target, job.gammas, job.method, known=known, **options):
        gamma, learned = solution.gamma, solution.intervention
        if gamma not in known:
            learned = known[gamma] = _kept(job, learned, gamma, False, time.perf_counter() - started)
        if (gamma, False) in missing:
            facts = {"cost": solution.cost, "unmet": solution.unmet, "steps": solution.steps}
            yield _told(job, learned, gamma, False, **facts), learned
        if (gamma, True) in missing:
            again = _known(job, gamma, True)
            if again is None:
                started = time.perf_counter()
                recipe = replace(job.method, gamma=0.0, refit=False, steps=solution.steps)
                again = learn(model, job.source, job.target, recipe, start=learned, within_support=True, **options)
                again = _kept(job, again, gamma, True, time.perf_counter() - started)
            yield _told(job, again, gamma, True, cost=again.facts["cost"][-1], steps=solution.steps), again
        started = time.perf_counter()


def _place(job: Job, gamma: float | None, refit: bool) -> Path:
    return job.place / (("learned" if gamma is None else f"gamma-{float(gamma)}") + ("-refit" if refit else ""))


def _known(job: Job, gamma: float | None, refit: bool) -> Intervention | None:
    """What was learned and saved before."""
    place = _place(job, gamma, refit)
    return Intervention.load(place) if place.exists() else None


def _kept(job: Job, learned: Intervention, gamma: float | None, refit: bool, seconds: float) -> Intervention:
    """An intervention, saved with its name, how long it took, and what it was learned from."""
    place = _place(job, gamma, refit)
    name = f"{job.name}, {place.name}, draw {job.seed}"
    named = drawn_from(learned, job.files, job.samples).with_facts(name=name, seconds=seconds)
    named.save(place, overwrite=True)
    return named


def _told(job: Job, learned: Intervention, gamma: float | None, refit: bool, **facts: Any) -> dict[str, Any]:
    """What a point says of an intervention."""
    return {
        "gamma": gamma,
        "refit": refit,
        "folder": str(_place(job, gamma, refit).relative_to(job.folder)),
        "support": learned.support(),
        "sites": sum(not map_.is_identity() for map_ in learned.maps.values()),
        "of_sites": len(learned.maps),
        "seconds": learned.facts["seconds"],
        **facts,
    }
