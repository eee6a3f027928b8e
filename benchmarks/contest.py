"""What the comparisons of methods share: the methods, learned once a draw and kept, and their rows.

Everything that is learned or measured is kept in benchmarks/runs (not part of the repository), so a comparison that was
interrupted, or that ran out of `--minutes`, goes on where it stopped.
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
from statistics import mean, stdev

import torch
from record import about, learn_at_some_rate, save

import lineas
from lineas.evaluation.classifiers import Classifier
from lineas.evaluation.records import Plan, Row
from lineas.evaluation.run import evaluate, weights_digest
from lineas.evaluation.systems import Adapted, Prompted, Steered, System, Untouched
from lineas.files import write_text
from lineas.learning.lora import LoRA
from lineas.stamp import packages

RUNS = Path(__file__).parent / "runs"
NORMS = r".*\.post_attention_layernorm"
MEASURES = ("toxic", "toxic_score", "concept", "concept_score", "perplexity", "kl", "distinct_2", "repetition", "mmlu")
CURVE = (0.25, 0.5, 0.75, 1.0)


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
        "lofit-rl": (lineas.LoFITRL(unwanted), None),
    }


class Contest:
    """A model, what is judged, and what has been learned for it.

    Args:
        name: of the result and of the folder in benchmarks/runs.
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
        self.name, self.model, self.plan, self.sides, self.options = name, model, plan, sides, options
        self.instruction = instruction
        self.folder = RUNS / f"{learned_in or name}-{Path(model.name).name}"
        self.weights = weights_digest(model)
        self.until = time.monotonic() + 60 * options.minutes
        self.methods = methods(unwanted)

    def run(self) -> list[dict]:
        """Measure everything that is asked for and not measured yet, record it after every method, and sum it up."""
        wanted = self.options.methods or list(self.methods)
        rows: list[dict] = []
        for draw in range(self.options.draws):
            fixed: list[System] = [Untouched(), Prompted(self.instruction)] if draw == 0 else []
            for system in fixed:
                rows.append(self._row(system, draw, {}))
            for name in wanted:
                system, facts = self._learned(name, draw)
                rows.append(self._row(system, draw, facts))
                self._record(rows, [], complete=False)
        along = [system for name in wanted for system in self._along(name)] if self.options.curves else []
        curves = [self._row(system, 0, {}, few=True) for system in along]
        self._record(rows, curves, complete=True)
        return summary(rows)

    def _along(self, name: str) -> list[System]:
        """A method's first draw at several strengths."""
        system, _ = self._learned(name, 0)
        return [replace(system, strength=strength) for strength in CURVE]  # type: ignore[type-var]

    def _learned(self, name: str, draw: int) -> tuple[System, dict]:
        """A method's system of a draw, learned unless it is kept."""
        self._check_time()
        method, sites = self.methods[name]
        sides = self.sides(draw)
        folder = self.folder / f"{name}-{draw}-{self._digest(method, sites, sides)}"
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

    def _digest(self, method: object, sites: str | None, sides: Sides) -> str:
        """Of everything that what is learned depends on."""
        settings = {key: str(value) for key, value in vars(method).items() if not callable(value)}
        everything = [settings, sites, asdict(sides), str(self.model.dtype), self.weights, packages()]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:12]

    def _row(self, system: System, draw: int, facts: dict, few: bool = False) -> dict:
        """One line of the result: a system at a strength on a draw; a few of the seeds and no tasks for curves."""
        self._check_time()
        plan = replace(self.plan, seeds=self.plan.seeds[:1], tasks=()) if few else self.plan
        plan = plan if draw == 0 else replace(plan, tasks=())
        (row,) = evaluate(self.model, [system], plan, self.folder / "parts").rows
        shown = {key: round(row.values[key], 4) for key in MEASURES if key in row.values}
        print({"system": row.system, "strength": row.strength, "draw": draw, **shown, **row.errors}, flush=True)
        return {"draw": draw, **_plain(row), **facts}

    def _check_time(self) -> None:
        if time.monotonic() > self.until:
            print("out of time; run the same command again to go on.", flush=True)
            sys.exit(3)

    def _record(self, rows: list[dict], curves: list[dict], complete: bool) -> None:
        """A result that is complete goes to benchmarks/results, another to the folder of the runs."""
        given = {key: value for key, value in vars(self.options).items() if key != "minutes"}
        result = {"about": about(), "model": self.model.name, "options": given}
        result |= {"summary": summary(rows), "rows": rows, "curves": curves}
        if complete:
            save(self.name, result)
        else:
            (self.folder / "partial.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def summary(rows: list[dict]) -> list[dict]:
    """A method a line: means over its draws, and their deviation."""
    lines = []
    for name in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == name]
        line: dict = {"system": name, "draws": len(mine)}
        measures = dict.fromkeys(key for row in mine for key in row["values"])
        for key in (*measures, "seconds", "parameters"):
            values = [row.get(key, row["values"].get(key)) for row in mine]
            known = [value for value in values if value is not None]
            if known:
                line[key] = {"mean": mean(known), "deviation": stdev(known) if len(known) > 1 else None}
        lines.append(line)
    return lines


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--samples", type=int, default=32, help="sentences a side")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--no-curves", dest="curves", action="store_false", help="strength 1 alone")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; run again to go on")
    return parser


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
