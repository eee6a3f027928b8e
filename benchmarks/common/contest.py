"""What the comparisons of methods share: the methods, learned once a draw, and their rows.

Every row goes to a file of its own under benchmarks/results/NAME as soon as it is measured, with the commit, the
machine and the date, so a comparison goes on where it stopped, on another machine too. What was learned and the parts
of a row are kept in benchmarks/runs (not part of the repository).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import lineas
from benchmarks.common import record
from benchmarks.common.record import UPPER_NORMS, about, learn_at_some_rate
from lineas.evaluation.classifiers import Classifier
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Row
from lineas.evaluation.variants import Adapted, Prompted, Steered, System, Untouched
from lineas.files.writing import write_text
from lineas.learning.lora import LoRA
from lineas.prompts import described
from lineas.versions import packages

RUNS = Path(__file__).parents[1] / "runs"
NORMS = r".*\.post_attention_layernorm"
MEASURES = ("toxic", "toxic_score", "concept", "concept_score", "perplexity", "kl", "distinct_2", "repetition", "mmlu")
CURVE = (0.25, 0.5, 0.75)
"""Strengths below 1 at which every draw is judged, by the first sampling seed."""
UNTOUCHED, PROMPT = "untouched", "prompt"


@dataclass(frozen=True)
class Sides:
    """What a draw learns from.

    Args:
        source: sentences of the behaviour to leave.
        target: sentences of the behaviour to reach.
        prompts: what LoFIT-RL continues, apart from those that are judged.
    """

    source: list[str]
    target: list[str]
    prompts: list[str]


def methods(unwanted: Classifier) -> dict[str, tuple[object, str | None]]:
    """By name, how to learn, and at which sites (None: the method's own)."""
    return {
        "caa": (lineas.CAA(), None),
        "caa-all": (lineas.CAA(layers="all"), None),
        "mean-act": (lineas.MeanAcT(), None),
        "lin-act": (lineas.LinAcT(), None),
        "lin-act-norms": (lineas.LinAcT(), NORMS),
        "iti-c": (lineas.ITIc(), None),
        "aura": (lineas.AurA(), None),
        "lora": (LoRA(), None),
        "lineas-paper": (lineas.LinEAS.paper(), None),
        "lineas": (lineas.LinEAS(), None),
        "lineas-upper": (lineas.LinEAS(), UPPER_NORMS),
        "lineas-sparse": (lineas.LinEAS(steps=40, gamma=5e-4, lambda_g=0.0, refit=True), UPPER_NORMS),
        "lofit-rl": (lineas.LoFITRL(unwanted), None),
    }


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
        plan: Plan,
        sides: Callable[[int], Sides],
        instruction: str,
        unwanted: Classifier,
        options: argparse.Namespace,
        learned_in: str | None = None,
    ) -> None:
        self.model, self.plan, self.sides, self.options = model, plan, sides, options
        self.instruction = instruction
        self.results = record.RESULTS / name
        self.folder = RUNS / f"{learned_in or name}-{Path(model.name).name}"
        self.weights = weights_sums(model)
        self.until = time.monotonic() + 60 * options.minutes
        self.methods = methods(unwanted)

    def run(self) -> list[dict]:
        """Measure everything that is asked for and not measured yet, and give its rows.

        First every method on every draw; then tasks on the first, and lower strengths.
        """
        wanted = self.options.methods or [UNTOUCHED, PROMPT, *self.methods]
        learned = [name for name in wanted if name in self.methods]
        first, last = self.options.first, self.options.draws
        on_first = wanted if first == 0 else []
        everything = replace(self.plan, tasks=())
        tasks = replace(self.plan, prompts=(), neutral=(), classifiers={})
        rows = [self._row(name, 0, everything) for name in on_first]
        rows += [self._row(name, draw, everything) for draw in range(max(first, 1), last) for name in learned]
        if self.plan.tasks:
            rows += [self._row(name, 0, tasks, "tasks") for name in on_first]
        few = replace(everything, seeds=self.plan.seeds[:1])
        for draw in range(first, last if self.options.curves else first):
            for name in learned:
                for strength in CURVE:
                    self._row(name, draw, few, "curve", strength)
        return rows

    def _row(self, name: str, draw: int, plan: Plan, kind: str = "row", strength: float = 1.0) -> dict:
        """One line of the result, measured unless it is there: a system at a strength on a draw."""
        file = self.results / f"{name}-{draw}-{kind}-{strength:g}.json"
        key = self._digest(name, draw, plan)
        if file.exists():
            told = json.loads(file.read_text(encoding="utf-8"))
            if told["key"] == key and not told["errors"]:
                return told
        self._check_time()
        system, facts = self._system(name, draw)
        if strength != 1:
            system = replace(system, strength=strength)  # type: ignore[type-var]
        (row,) = evaluate(self.model, [system], plan, self.folder / "parts").rows
        shown = {measure: round(row.values[measure], 4) for measure in MEASURES if measure in row.values}
        print({"system": name, "strength": strength, "draw": draw, **shown, **row.errors}, flush=True)
        asked = {"samples": self.options.samples, "seeds": len(plan.seeds), "prompts": len(plan.prompts)}
        line = {"key": key, "kind": kind, "model": self.model.name, "draw": draw, **asked, **_plain(row), **facts}
        write_text(file, json.dumps({**line, "about": about()}, indent=1) + "\n")
        return line

    def _digest(self, name: str, draw: int, plan: Plan) -> str:
        """Of everything that a row depends on, but its strength."""
        everything: list[object] = [str(self.model.dtype), self.weights, packages()]
        everything += [described(plan.prompts), described(plan.neutral), dict(plan.sampling), list(plan.seeds)]
        everything += [sorted(plan.classifiers), list(plan.tasks), plan.fewshot, plan.task_limit, plan.max_length]
        if name in self.methods:
            everything += self._recipe(name, draw)
        elif name == PROMPT:
            everything.append(self.instruction)
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    def _recipe(self, name: str, draw: int) -> list[object]:
        """What a method learns with and from."""
        method, sites = self.methods[name]
        settings = {key: str(value) for key, value in vars(method).items() if not callable(value)}
        return [settings, sites, asdict(self.sides(draw))]

    def _system(self, name: str, draw: int) -> tuple[System, dict]:
        """What is judged, a method's learned unless it is kept, and what is told of it."""
        if name not in self.methods:
            return (Untouched() if name == UNTOUCHED else Prompted(self.instruction)), {}
        method, sites = self.methods[name]
        sides = self.sides(draw)
        of = [*self._recipe(name, draw), str(self.model.dtype), self.weights, packages()]
        folder = self.folder / f"{name}-{draw}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]}"
        facts = folder.with_suffix(".json")
        if not facts.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
            started = time.perf_counter()
            settings: object = str(method)
            if isinstance(method, LoRA):
                method.fine_tune(self.model, sides.target, folder, seed=draw)
            else:
                source = sides.prompts if isinstance(method, lineas.LoFITRL) else sides.source
                learned = learn_at_some_rate(self.model, source, sides.target, method, sites, draw)  # type: ignore[arg-type]
                learned.save(folder, overwrite=True)
                settings = learned.facts["method"]  # with the rate that was taken
            seconds = time.perf_counter() - started
            told = {"seconds": seconds, "settings": settings, "parameters": _parameters(folder)}
            write_text(facts, json.dumps(told))
        told = json.loads(facts.read_text(encoding="utf-8"))
        if isinstance(method, LoRA):
            return Adapted(name, folder), told
        return Steered(name, lineas.Intervention.load(folder)), told

    def _check_time(self) -> None:
        if time.monotonic() > self.until:
            print("out of time; run the same command again to go on.", flush=True)
            sys.exit(3)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def weights_sums(model: lineas.TextModel) -> str:
    """A digest of the sums of all weights, under which the results in the repository were kept."""
    sums = [
        f"{name} {p.double().sum():.10g} {p.double().abs().sum():.10g}" for name, p in model.network.named_parameters()
    ]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _plain(row: Row) -> dict:
    return {
        "system": row.system,
        "strength": row.strength,
        "values": row.values,
        "by_seed": row.by_seed,
        "intervals": row.intervals,
        "metrics": row.metrics,
        "errors": row.errors,
    }


def _parameters(folder: Path) -> int:
    """The numbers that were learned and are not those of the identity."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        from safetensors.torch import load_file

        return sum(tensor.numel() for tensor in load_file(adapter).values())
    maps = lineas.Intervention.load(folder).maps.values()
    return sum(int(torch.count_nonzero(m.scale - 1) + torch.count_nonzero(m.shift)) for m in maps)
