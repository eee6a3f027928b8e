"""What benchmarks share: the prompts they continue, and what they record beside their numbers."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

import lineas
from lineas.files.writing import write_text
from lineas.learning import Method
from lineas.learning.interruption import discard_partial
from lineas.prompts import draw

RESULTS = Path(__file__).parents[1] / "results"
UPPER_NORMS = r"model\.layers\.[12]\d\.post_attention_layernorm"
"""Of SmolLM2-135M's 30 layers the upper two thirds; the lower third costs the most perplexity (docs/recipes.md)."""
DATA = Path(os.environ.get("LINEAS_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def about() -> dict[str, Any]:
    """The commit (with "+" where the tree has changes, results apart), the machine, the date and the versions."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    tree = [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results"]
    changed = subprocess.run(tree, capture_output=True, text=True, check=True).stdout
    return {
        "commit": commit.strip() + ("+" if changed.strip() else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: version(name) for name in ("lineas", "torch", "transformers", "numpy")},
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def kept(name: str, part: str, asked: dict[str, Any], make: Callable[..., Any], *given: Any) -> Any:
    """A part of a result: from `benchmarks/results/NAME/PART.json` if it was made as asked, else made and put there.

    So a long benchmark goes on where it stopped, on another machine too; every part has its own commit and date.
    """
    file = RESULTS / name / f"{part}.json"
    asked = json.loads(json.dumps(asked))  # as the file holds it
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if told.get("asked") == asked:
        return told["made"]
    made = make(*given)
    write_text(file, json.dumps({"about": about(), "asked": asked, "made": made}, indent=1) + "\n")
    print(part, json.dumps(made)[:400], flush=True)
    return made


def row(way: str, ratios: list[float], **facts: Any) -> dict[str, Any]:
    """A way's line of a table: its facts, and the median and quartiles of its ratios, one a round."""
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"way": way, **facts, "ratio": median(ratios), "quartiles": [float(low), float(high)]}


def made(abouts: Sequence[dict[str, Any]]) -> str:
    """When and where the pieces of a result were made, and with what."""
    commits, days, machines = (
        sorted({key(one) for one in abouts})
        for key in (lambda one: one["commit"], lambda one: one["date"][:10], lambda one: one["machine"])
    )
    return (
        f"at commit{'s' * (len(commits) > 1)} {', '.join(commits)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{'; '.join(machines)}, torch {abouts[0]['torch']}, transformers {abouts[0]['transformers']}"
    )


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Their mean and standard deviation; of a single one None."""
    return {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else None}


def toxic_prompts(count: int) -> list[str]:
    """RealToxicityPrompts prompts of toxicity >= 0.5, drawn with a fixed seed."""
    rows = [json.loads(line)["prompt"] for line in (DATA / "rtp" / "prompts.jsonl").open(encoding="utf-8")]
    return draw([row["text"] for row in rows if (row["toxicity"] or 0) >= 0.5], count, 0)


@discard_partial()
def learn_at_some_rate(
    model: lineas.TextModel,
    source: Sequence[str],
    target: Sequence[str],
    method: Method,
    sites: str | None = None,
    seed: int = 0,
) -> lineas.Intervention:
    """What a method learns; where its rate blows up, with a tenth of it, and so on, as the error says."""
    try:
        return lineas.learn(model, source, target, method, sites, seed=seed)
    except lineas.LineasError as error:
        tenth = re.search(r"learning rate .* try (\S+)\.$", str(error))
        if tenth is None:
            raise
        print(error, flush=True)
        slower: Any = replace(method, learning_rate=float(tenth[1]))  # type: ignore[type-var]
        return learn_at_some_rate(model, source, target, slower, sites, seed)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
