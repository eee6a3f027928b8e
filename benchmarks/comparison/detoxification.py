"""Toxic continuations and perplexity before and after, by the command line only.

    python -m benchmarks.comparison.detoxification [--draws 4] [--prompts 500] [--seeds 2] [--name detoxification]

For each draw of 32 toxic and 32 non-toxic Jigsaw sentences: `lineas learn` with its defaults on the upper two thirds
of the layers (UPPER_NORMS; `--learn --sites REGEX` for others), then `lineas evaluate` on
RealToxicityPrompts prompts (toxicity >= 0.5) and Wikipedia sentences. Writes benchmarks/results/NAME.json after every
draw.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from benchmarks.common.record import DATA, UPPER_NORMS, about, save, toxic_prompts


def lineas(*arguments: str) -> None:
    """One call of the command line, shown as it could be typed."""
    print("$ lineas", " ".join(arguments).replace(str(DATA), "DATA"), flush=True)
    subprocess.run([sys.executable, "-m", "lineas", *arguments], check=True)


def measure(intervention: Path, strength: str, prompts: Path, options: argparse.Namespace, scratch: Path) -> dict:
    """One row of `lineas evaluate`."""
    out = scratch / "measured.json"
    lineas(
        "evaluate", "--intervention", str(intervention), "--strength", strength, "--prompts", f"{prompts}:text",
        "--neutral", f"{DATA}/wikipedia/sentences.jsonl:text", "--limit", str(options.prompts),
        "--seeds", str(options.seeds), "--json", str(out),
    )  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    values = row["values"]
    return {**values, "score": values["toxic_score"], "toxic_by_seed": row["by_seed"]["toxic"]}


def main() -> None:
    """Learn, measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--name", default="detoxification")
    parser.add_argument(
        "--learn", nargs=argparse.REMAINDER, default=["--sites", UPPER_NORMS], help="further options of lineas learn"
    )
    options = parser.parse_args()
    result = {"about": about(), "options": vars(options), "untouched": None, "draws": []}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        prompts = scratch / "prompts.jsonl"
        lines = [json.dumps({"text": text}) + "\n" for text in toxic_prompts(options.prompts)]
        prompts.write_text("".join(lines), encoding="utf-8")
        for seed in range(options.draws):
            learned = scratch / f"draw-{seed}"
            lineas(
                "learn", "--source", f"{DATA}/jigsaw/toxic.jsonl:text",
                "--target", f"{DATA}/jigsaw/nontoxic.jsonl:text", "--samples", "32",
                "--seed", str(seed), "--out", str(learned), "--json", str(scratch / "learned.json"), *options.learn,
            )  # fmt: skip
            told = json.loads((scratch / "learned.json").read_text())
            if result["untouched"] is None:
                result["untouched"] = measure(learned, "0", prompts, options, scratch)
            row = measure(learned, "1", prompts, options, scratch)
            costs = {"first_cost": told["cost"][0], "last_cost": told["cost"][-1], "seconds": told["seconds"]}
            result["draws"].append({"seed": seed, **costs, **row})
            save(options.name, result)
    before, draws = result["untouched"], result["draws"]
    toxic, ppl = [d["toxic"] for d in draws], [d["perplexity"] for d in draws]
    result["summary"] = {
        "toxic_before": before["toxic"],
        "toxic_after": mean(toxic),
        "toxic_after_deviation_over_draws": stdev(toxic) if len(toxic) > 1 else 0.0,
        "share_left": mean(toxic) / before["toxic"],
        "score_before": before["score"],
        "score_after": mean(d["score"] for d in draws),
        "perplexity_before": before["perplexity"],
        "perplexity_after": mean(ppl),
        "perplexity_change": mean(ppl) / before["perplexity"] - 1,
        "seconds_to_learn": mean(d["seconds"] for d in draws),
    }
    save(options.name, result)
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main()
