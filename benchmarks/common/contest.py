"""A comparison of methods on one model: each learns once a draw, and is judged at several strengths.

Every row is a part of the result (`record.Part`), kept as soon as it is measured. What was learned, and the parts of a
row, are kept in benchmarks/runs.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import record
from benchmarks.common.concepts import Sides
from benchmarks.common.methods import relative, settings_of
from benchmarks.common.splits import UPPER_NORMS
from lineas.prompts import described
from lineas.versions import packages

if TYPE_CHECKING:
    from lineas.evaluation.classifiers import Classifier
    from lineas.evaluation.variants import System

NORMS = r".*\.post_attention_layernorm"
MEASURES = ("toxic", "toxic_score", "concept", "concept_score", "perplexity", "kl", "distinct_2", "repetition", "mmlu")
MEASURED = ("system", "strength", "values", "by_seed", "intervals", "metrics", "errors")
"""The parts of an evaluation's row that are recorded."""
CURVE = (0.25, 0.5, 0.75)
"""Strengths below 1 at which every draw is judged, by the first sampling seed."""
UNTOUCHED, PROMPT = "untouched", "prompt"
METHODS: dict[str, tuple[Callable[[Classifier], Any], str | None]] = {
    "caa": (lambda unwanted: lineas.CAA(), None),
    "caa-all": (lambda unwanted: lineas.CAA(layers="all"), None),
    "mean-act": (lambda unwanted: lineas.MeanAcT(), None),
    "lin-act": (lambda unwanted: lineas.LinAcT(), None),
    "lin-act-norms": (lambda unwanted: lineas.LinAcT(), NORMS),
    "iti-c": (lambda unwanted: lineas.ITIc(), None),
    "aura": (lambda unwanted: lineas.AurA(), None),
    "lora": (lambda unwanted: _lora(), None),
    "lineas-paper": (lambda unwanted: lineas.LinEAS.paper(), None),
    "lineas": (lambda unwanted: relative(), None),
    "lineas-upper": (lambda unwanted: relative(), UPPER_NORMS),
    "lineas-sparse": (lambda unwanted: relative(steps=40, gamma=5e-4, lambda_g=0.0, refit=True), UPPER_NORMS),
    "lofit-rl": (lambda unwanted: lineas.LoFITRL(unwanted), None),
}
"""By name, in the order of tables: what makes the method, given what it should avoid, and where it acts (None: where it
does by itself)."""


class Contest:
    """A model, what is judged, and what has been learned for it.

    Args:
        name: of the folders in benchmarks/results and benchmarks/runs.
        model: untouched.
        plan: what is measured of every method.
        sides: of a draw, by its number.
        instruction: the prompt baseline.
        unwanted: what LoFIT-RL is trained to avoid.
        options: `--draws`, `--methods`, `--minutes`, from `arguments`.
        learned_in: the name whose folder holds what was learned, where several contests share it.
    """

    def __init__(
        self,
        name: str,
        model: lineas.TextModel,
        plan: lineas.Plan,
        sides: Callable[[int], Sides],
        instruction: str,
        unwanted: Classifier,
        options: argparse.Namespace,
        learned_in: str | None = None,
    ) -> None:
        self.name, self.model, self.plan, self.sides, self.options = name, model, plan, sides, options
        self.instruction, self.unwanted = instruction, unwanted
        self.folder = record.RUNS / f"{learned_in or name}-{Path(model.name).name}"
        self.until = time.monotonic() + 60 * options.minutes

    def run(self) -> list[dict]:
        """Measure what is asked for and not measured yet; return its rows at strength 1."""
        rows = [record.get_or_make(part).made for part in self.parts()]
        return [row for row in rows if row["kind"] != "curve"]

    def parts(self) -> list[record.Part]:
        """Return all rows in the order in which they are measured.

        First every method on every draw; then tasks on the first, and lower strengths.
        """
        wanted = self.options.methods or [UNTOUCHED, PROMPT, *METHODS]
        learned = [name for name in wanted if name in METHODS]
        first, last = self.options.first, self.options.draws
        on_first = wanted if first == 0 else []
        everything = replace(self.plan, tasks=())
        tasks = replace(self.plan, prompts=(), neutral=(), classifiers={})
        parts = [self._part(name, 0, everything) for name in on_first]
        parts += [self._part(name, draw, everything) for draw in range(max(first, 1), last) for name in learned]
        if self.plan.tasks:
            parts += [self._part(name, 0, tasks, "tasks") for name in on_first]
        few = replace(everything, seeds=self.plan.seeds[:1])
        return parts + [
            self._part(name, draw, few, "curve", strength)
            for draw in range(first, last if self.options.curves else first)
            for name in learned
            for strength in CURVE
        ]

    def _part(self, name: str, draw: int, plan: lineas.Plan, kind: str = "row", strength: float = 1.0) -> record.Part:
        """Return the row of a system at a strength on a draw."""
        return record.Part(
            record.RESULTS / self.name / f"{name}-{draw}-{kind}-{strength:g}.json",
            {"key": self._key(name, draw, plan)},
            partial(self._measured, name, draw, plan, kind, strength),
            lambda row: not row["errors"],
        )

    def _measured(self, name: str, draw: int, plan: lineas.Plan, kind: str, strength: float) -> dict:
        """Learn what a system needs, unless it is there, and judge it."""
        if time.monotonic() > self.until:
            print("out of time; run the same command again to go on.", flush=True)
            sys.exit(3)
        system, facts = self._system(name, draw, strength)
        (row,) = lineas.evaluate(self.model, [system], plan, self.folder / "parts").rows
        shown = {measure: round(row.values[measure], 4) for measure in MEASURES if measure in row.values}
        print({"system": name, "strength": strength, "draw": draw, **shown, **row.errors}, flush=True)
        sizes = {"samples": self.options.samples, "seeds": len(plan.seeds), "prompts": len(plan.prompts)}
        measured = {key: getattr(row, key) for key in MEASURED}
        return {"kind": kind, "model": self.model.name, "draw": draw, **sizes, **measured, **facts}

    @cached_property
    def _weights(self) -> str:
        """A digest of the sums of all weights."""
        named = self.model.network.named_parameters()
        sums = [f"{name} {p.double().sum():.10g} {p.double().abs().sum():.10g}" for name, p in named]
        return hashlib.sha256("\n".join(sums).encode()).hexdigest()

    def _key(self, name: str, draw: int, plan: lineas.Plan) -> str:
        """Return a digest of everything that a row depends on, but its strength."""
        everything: list[object] = [str(self.model.dtype), self._weights, packages()]
        everything += [described(plan.prompts), described(plan.neutral), dict(plan.sampling), list(plan.seeds)]
        everything += [sorted(plan.classifiers), list(plan.tasks), plan.fewshot, plan.task_limit, plan.max_length]
        if name in METHODS:
            everything += self._recipe(name, draw)
        elif name == PROMPT:
            everything.append(self.instruction)
        return record.digest(everything)[:16]

    def _recipe(self, name: str, draw: int) -> list[object]:
        """Return what a method learns with and from."""
        make, sites = METHODS[name]
        fields = settings_of(make(self.unwanted)).items()
        settings = {key: str(value) for key, value in fields if not callable(value)}
        if settings.get("refit") == "False":
            del settings["refit"]  # rows from before it was a setting are those without it
        return [settings, sites, asdict(self.sides(draw))]

    def _system(self, name: str, draw: int, strength: float) -> tuple[System, dict]:
        """Return what is judged, and how it was learned: now, unless that was done before."""
        from lineas.evaluation.variants import Adapted, Prompted, Steered, Untouched

        if name not in METHODS:
            return (Untouched() if name == UNTOUCHED else Prompted(self.instruction)), {}
        recipe = [*self._recipe(name, draw), str(self.model.dtype), self._weights, packages()]
        digest = record.digest(recipe)[:12]
        folder = self.folder / f"{name}-{draw}-{digest}"
        part = record.Part(
            folder.with_suffix(".json"),
            {"recipe": digest},
            partial(self._learned, name, draw, folder),
            lambda facts: folder.exists(),
        )
        facts = record.get_or_make(part).made
        if name == "lora":
            return Adapted(name, folder, strength), facts
        return Steered(name, lineas.Intervention.load(folder), strength), facts

    def _learned(self, name: str, draw: int, folder: Path) -> dict[str, Any]:
        """Learn by a method into a folder, and return how."""
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        make, sites = METHODS[name]
        method, sides = make(self.unwanted), self.sides(draw)
        started = time.perf_counter()
        settings: object = str(method)
        if name == "lora":
            method.fine_tune(self.model, sides.target, folder, seed=draw)
        else:
            source = sides.prompts if name == "lofit-rl" else sides.source
            learned = learn_at_some_rate(self.model, source, sides.target, method, sites, draw)
            learned.save(folder, overwrite=True)
            settings = learned.facts["method"]  # with the rate that was taken
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "settings": settings, "parameters": _parameters(folder)}


def learn_at_some_rate(
    model: lineas.TextModel,
    source: Sequence[str],
    target: Sequence[str],
    method: Any,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
) -> lineas.Intervention:
    """Return what a method learns; where its rate blows up, with a tenth of it, and so on, as the error says."""
    try:
        return lineas.learn(model, source, target, method, sites, seed=seed)
    except lineas.DivergedError as error:
        print(error, flush=True)
        slower = replace(method, learning_rate=error.suggestion)
        return learn_at_some_rate(model, source, target, slower, sites, seed)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all comparisons have."""
    parser = record.parser(description)
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="float32", help="one for all rows, on whatever machine they are measured")
    parser.add_argument("--samples", type=int, default=32, help="sentences a side")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first of the draws, for two runs at once")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=None, help="also: untouched, prompt")
    parser.add_argument("--no-curves", dest="curves", action="store_false", help="strength 1 alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; run again to go on")
    return parser


def _lora() -> Any:
    from lineas.learning.lora import LoRA

    return LoRA()


def _parameters(folder: Path) -> int:
    """Return how many numbers were learned and are not those of the identity."""
    import torch

    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        from safetensors.torch import load_file

        return sum(tensor.numel() for tensor in load_file(adapter).values())
    maps = lineas.Intervention.load(folder).maps.values()
    return sum(int(torch.count_nonzero(m.scale - 1) + torch.count_nonzero(m.shift)) for m in maps)
