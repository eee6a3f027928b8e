"""Results: what was measured and who measured it, when and where; in one shape, whole or in parts."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lineas
from lineas.files.writing import write_text
from lineas.versions import packages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "benchmarks" / "runs"
"""The folder of what is learned meanwhile; not part of the repository."""


@dataclass(frozen=True)
class Result:
    """A result or a part of one, as its file holds it.

    Args:
        about: commit, date, machine and versions.
        asked: options and settings that it depends on.
        made: what was measured.
    """

    about: dict[str, Any]
    asked: dict[str, Any]
    made: Any


@dataclass(frozen=True)
class Part:
    """A part of a result, measured once and kept in a file of its own.

    Args:
        file: where it is kept.
        asked: everything that it depends on.
        measure: measures it.
        is_whole: whether what was measured is all there.
    """

    file: Path
    asked: dict[str, Any]
    measure: Callable[[], Any]
    is_whole: Callable[[Any], bool] = lambda made: True

    def find(self) -> Result | None:
        """Return it if it was measured as it is asked for, by whomever; else None."""
        if not self.file.exists():
            return None
        result = read(self.file)
        asked = json.loads(json.dumps(self.asked))  # as a file holds it
        return result if result.asked == asked and self.is_whole(result.made) else None


def get_or_make(part: Part) -> Result:
    """Return a part, measuring it if it is missing, so that a benchmark goes on where it stopped.

    `lineas.evaluation.result_cache` is no substitute: it names files by a digest and notes neither commit, machine nor
    date. These are committed, read by people and by `benchmarks.pages`, and may come from several machines.
    """
    from lineas.learning.interruption import discard_partial

    if known := part.find():
        return known
    with discard_partial():
        made = part.measure()
    return write(part.file, Result(about(), part.asked, made))


def text_model(name: str | Path | None = None, dtype: str = "auto") -> lineas.TextModel:
    """Return a language model; without a name the default one."""
    model = lineas.load(name, dtype=dtype)
    if not isinstance(model, lineas.TextModel):
        raise lineas.LineasError(f"{model.name} writes no text; name a language model.")
    return model


@cache
def default_model() -> lineas.TextModel:
    """Return the default model in float32, the same on whatever machine parts are measured."""
    return text_model(dtype="float32")


def load_or_learn(folder: Path, learn: Callable[[], lineas.Intervention]) -> lineas.Intervention:
    """Return the intervention in a folder of `RUNS`, learning it if it is missing."""
    if not folder.exists():
        learn().save(folder)
    return lineas.Intervention.load(folder)


def digest(value: Any) -> str:
    """Return a digest of something as JSON holds it."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def save(name: str, asked: dict[str, Any], made: Any, *others: str) -> Result:
    """Write `benchmarks/results/NAME.json`, with the versions of other packages, too."""
    return write(RESULTS / f"{name}.json", Result(about(*others), asked, made))


def write(file: Path, result: Result) -> Result:
    """Write a result, and return it."""
    write_text(file, json.dumps(asdict(result), indent=1) + "\n")
    return result


def read(file: Path) -> Result:
    """Read a result, also of the older shapes: options in place of what was asked, or a key, beside what was made."""
    held = json.loads(file.read_text(encoding="utf-8"))
    if "made" in held:
        return Result(**held)
    about = held.pop("about", {})
    asked = {"key": held.pop("key")} if "key" in held else held.pop("options", {})
    return Result(about, asked, held)


def named(name: str) -> list[tuple[str, Result]]:
    """Return the results of a name, or of a name and a model; of one that has no file of its own, its parts as one."""
    file, parts = RESULTS / f"{name}.json", parts_of(name)
    files = [file] if file.exists() else sorted(RESULTS.glob(f"{name}-*.json"), reverse=True)
    if not files and parts:
        return [(name, Result({}, {}, [part.made for part in parts]))]
    return [(file.stem, read(file)) for file in files]


def parts_of(name: str) -> list[Result]:
    """Return the parts of a result that are kept."""
    return [read(file) for file in sorted((RESULTS / name).glob("*.json"))]


def about(*others: str) -> dict[str, Any]:
    """Return the commit ("+" after it where more than results has changed), date, machine and versions."""
    import torch

    changed = _git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return {
        "commit": (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **packages(),
        **{name: version(name) for name in ("numpy", *others)},
    }


def provenance(results: Sequence[Result]) -> str:
    """Return at which commits, when, where and with which versions results were made."""
    abouts = [result.about for result in results]
    commits = sorted({one["commit"] for one in abouts})
    days = sorted({one["date"][:10] for one in abouts})
    versions = {"torch": "torch", "vllm": "vLLM", "transformers": "transformers"}
    parts = [
        f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)}",
        " to ".join(dict.fromkeys((days[0], days[-1]))),
        "; ".join(sorted({one["machine"] for one in abouts})),
        *(f"{title} {abouts[0][name]}" for name, title in versions.items() if name in abouts[0]),
    ]
    return ", ".join(parts)


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the standard deviation, which is None of a single value."""
    return {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else None}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of options whose help is a module's docstring as it stands."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def _git(*arguments: str) -> str:
    """Return what git says of the repository; nothing where it is none."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
