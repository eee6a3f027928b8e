"""One job of a sweep: learn with one method from one draw of prompts, for each gamma if it has one, and judge that.

A job is plain data, so any process on any machine that sees the folder can run it, or go on with an unfinished one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import torch

from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, Untouched
from lineas.files import strict_json
from lineas.intervention.intervention import Intervention
from lineas.learning import LinEAS, Method, learn
from lineas.learning.gamma_path import for_path, gamma_path
from lineas.learning.interruption import discard_partial
from lineas.learning.learn import drawn_from
from lineas.models import load
from lineas.models.digests import reading_weights_once

POINTS, PARTS = "points.jsonl", "parts"
UNTOUCHED = "untouched"
MEASURED = ("values", "by_seed", "intervals", "errors")
"""Parts of a row of results that are in a point."""
NUMBERS = ("support", "sites", "of_sites", "cost", "unmet", "seconds", "steps")
"""Further numbers of a point, any of which may be missing."""


@dataclass(frozen=True)
class Job:
    """The work of one process.

    Args:
        folder: folder of the sweep, which all processes see.
        model: name that `lineas.load` knows; None for the default model.
        plan: measurements at each point, with classifiers and judge by name.
        method: method of learning; None (default) judges the untouched model.
        name: name of the method, as the user wrote it.
        source: source prompts of this draw.
        target: target prompts of this draw.
        seed: seed of the draw and of learning.
        gammas: weights of the penalty, which only LinEAS has.
        refit: whether each result with a penalty is learned again without it, on the same neurons.
        strengths: strengths at which each result is judged, each of them a point.
        options: further arguments of `lineas.learn`.
        dtype: type of the weights.
        threads: number of threads of the process; None leaves it.
        files: file of each side, which the artifact records.
        samples: number of prompts drawn from each file; None for all.
    """

    folder: Path
    model: str | None
    plan: Plan
    _: KW_ONLY
    method: Method | None = None
    name: str = UNTOUCHED
    source: Sequence[str] = ()
    target: Sequence[str] = ()
    seed: int = 0
    gammas: Sequence[float] = ()
    refit: bool = False
    strengths: Sequence[float] = (1.0,)
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    threads: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    samples: int | None = None

    @property
    def place(self) -> Path:
        """The folder of the job's points and interventions."""
        return self.folder / (UNTOUCHED if self.method is None else f"{self.name}-{self.seed}")

    @property
    def count(self) -> int:
        """The number of points."""
        return len(self._points)

    def missing(self) -> dict[tuple[float | None, bool], list[float]]:
        """Return the strengths that are still to be judged, by gamma and whether it is refitted.

        A point with a failed measure is judged again.
        """
        done = {(one["gamma"], one["refit"], one["strength"]) for one in points(self.place) if not one.get("errors")}
        missing: dict[tuple[float | None, bool], list[float]] = {}
        for gamma, refit, strength in self._points:
            if (gamma, refit, strength) not in done:
                missing.setdefault((gamma, refit), []).append(strength)
        return missing

    @property
    def _points(self) -> list[tuple[float | None, bool, float]]:
        """Gamma, whether it is refitted, and strength of each point."""
        kinds: list[tuple[float | None, bool]] = [(None, False)]
        if isinstance(self.method, LinEAS):
            kinds = [(g, refit) for g in self.gammas for refit in (False, True) if not refit or (self.refit and g > 0)]
        strengths = (1.0,) if self.method is None else self.strengths
        return [(*kind, strength) for kind in kinds for strength in strengths]


def points(place: Path) -> list[dict[str, Any]]:
    """Return the finished points of a job, each once.

    A line that was cut off when a process ended is ignored. A line that no sweep wrote is ignored with a warning.
    """
    by_key: dict[tuple[Any, ...], dict[str, Any]] = {}
    file = place / POINTS
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else (), start=1):
        try:
            point = _without_gaps(strict_json.loads(line))
        except LineasError:
            if not line.strip() or (line.startswith(b"{") and not line.endswith(b"}")):  # empty, or cut off
                continue
            point = None
        if _is_point(point):
            by_key[point["gamma"], point["refit"], point["strength"]] = point  # two processes may write the same one
        else:
            warnings.warn(
                f"line {number} of {file} is no point of a sweep; it is passed over, and its point is measured again.",
                stacklevel=2,
            )
    return list(by_key.values())


def _without_gaps(point: Any) -> Any:
    """Return a point without its numbers that are null, as numbers that are not finite are written in JSON."""
    if not isinstance(point, dict) or not isinstance(point.get("values"), dict):
        return point
    values = {name: value for name, value in point["values"].items() if value is not None}
    return {name: v for name, v in point.items() if v is not None or name not in NUMBERS} | {"values": values}


def _is_point(read: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value read from a file has everything that `summary` and the table need of a point."""
    if not isinstance(read, dict) or not isinstance(read.get("values"), dict):
        return False
    numbers = [read.get("strength"), *read["values"].values(), *(read[name] for name in NUMBERS if name in read)]
    numbers += [] if read.get("gamma") is None else [read["gamma"]]
    return (
        all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        and "gamma" in read
        and (isinstance(read.get("folder"), str) or read.get("method") == UNTOUCHED)
        and isinstance(read.get("refit"), bool)
        and isinstance(read.get("method"), str)
        and isinstance(read.get("seed"), int)
        and isinstance(read.get("errors"), dict)
    )


@discard_partial()
@reading_weights_once()
def run_job(job: Job, model: Any = None, progress: Callable[[int], None] | None = None) -> int:
    """Run the unfinished part of a job, and return the number of all its points.

    Args:
        model: loaded model; None to load it.
        progress: function that is called with 1 after each point.
    """
    if missing := job.missing():
        if job.threads is not None:
            torch.set_num_threads(job.threads)
        model = _load(job.model, job.dtype) if model is None else model
        for point, learned in _learn_missing(job, model, missing):
            for strength in missing[point["gamma"], point["refit"]]:
                system = Untouched() if learned is None else Steered(job.name, learned, strength)
                row = evaluate(model, [system], job.plan, job.folder / PARTS).rows[0]
                measured = {key: value for key, value in asdict(row).items() if key in MEASURED}
                about = {"method": job.name, "seed": job.seed, **point, "strength": strength}
                _append(job.place / POINTS, {**about, **measured})
                if progress:
                    progress(1)
    return job.count


@lru_cache(maxsize=1)
def _load(model: str | None, dtype: str) -> Any:
    """Load a model once for all jobs of a worker."""
    return load(model, dtype=dtype)


def _append(file: Path, point: dict[str, Any]) -> None:
    """Append a line with a point, on a new line even if the last one was cut off."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as opened:
        opened.write("\n" * cut_off + strict_json.dumps(point, indent=None, gaps=True) + "\n")


def _learn_missing(
    job: Job, model: Any, missing: Collection[tuple[float | None, bool]]
) -> Iterator[tuple[dict[str, Any], Intervention | None]]:
    """Yield facts and intervention for each missing gamma, learned now, or loaded if it was learned before."""
    if job.method is None:
        yield {"gamma": None, "refit": False}, None
        return
    options = {"seed": job.seed, "progress": False, **job.options}

    def learned_by(method: Method, gamma: float | None, refit: bool, **more: Any) -> Intervention:
        if (saved := _load_saved(job, gamma, refit)) is not None:
            return saved
        started = time.perf_counter()
        learned = learn(model, job.source, job.target, method, **options, **more)
        return _save(job, learned, gamma, refit, time.perf_counter() - started)

    if not isinstance(job.method, LinEAS):
        learned = learned_by(job.method, None, False)
        yield _facts(job, learned, None, False, cost=learned.facts["cost"][-1]), learned
        return
    saved = {gamma: one for gamma in job.gammas if (one := _load_saved(job, gamma, False)) is not None}
    started = time.perf_counter()
    for solution in gamma_path(model, job.source, job.target, job.gammas, job.method, known=saved, **options):
        gamma, learned = solution.gamma, solution.intervention
        if gamma not in saved:
            learned = saved[gamma] = _save(job, learned, gamma, False, time.perf_counter() - started)
        if (gamma, False) in missing:
            facts = {"cost": solution.cost, "unmet": solution.unmet, "steps": solution.steps}
            yield _facts(job, learned, gamma, False, **facts), learned
        if (gamma, True) in missing:
            recipe = replace(for_path(job.method), gamma=0.0, refit=False, steps=solution.steps)
            refitted = learned_by(recipe, gamma, True, start=learned, within_support=True)
            yield _facts(job, refitted, gamma, True, cost=refitted.facts["cost"][-1], steps=solution.steps), refitted
        started = time.perf_counter()


def _place(job: Job, gamma: float | None, refit: bool) -> Path:
    return job.place / (("learned" if gamma is None else f"gamma-{float(gamma)}") + ("-refit" if refit else ""))


def _load_saved(job: Job, gamma: float | None, refit: bool) -> Intervention | None:
    place = _place(job, gamma, refit)
    return Intervention.load(place) if place.exists() else None


def _save(job: Job, learned: Intervention, gamma: float | None, refit: bool, seconds: float) -> Intervention:
    """Save an intervention with its name, its files and the seconds it took, and return it with these facts."""
    place = _place(job, gamma, refit)
    name = f"{job.name}, {place.name}, draw {job.seed}"
    named = drawn_from(learned, job.files, job.samples).with_facts(name=name, seconds=seconds)
    named.save(place, overwrite=True)
    return named


def _facts(job: Job, learned: Intervention, gamma: float | None, refit: bool, **facts: Any) -> dict[str, Any]:
    """Return the facts about an intervention that each of its points holds."""
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
