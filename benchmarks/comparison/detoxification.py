"""Toxic continuations and perplexity before and after, by the command line only.

    python -m benchmarks.comparison.detoxification [--draws 4] [--prompts 500] [--seeds 2] [--name detoxification]

For each draw of 32 toxic and 32 non-toxic Jigsaw sentences: `lineas learn` with its defaults (`--learn ...` for other
options), then `lineas evaluate` on RealToxicityPrompts prompts (toxicity >= 0.5) and Wikipedia sentences. Writes
benchmarks/results/NAME.json after every draw.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from benchmarks.common import markdown, record
from benchmarks.common.splits import FOLDER, take
from lineas.measures import measure as known_measure


def main() -> None:
    """Learn, measure, print, and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--name", default="detoxification")
    parser.add_argument("--learn", nargs=argparse.REMAINDER, default=[], help="further options of lineas learn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = {
            "prompts": take("detoxification", "judging", "rtp", count=options.prompts),
            "neutral": take("detoxification", "judging", "wikipedia", count=options.prompts),
        }
        for name, lines in texts.items():
            rows = [json.dumps({"text": text}) + "\n" for text in lines]
            (scratch / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        untouched: dict = {}
        draws: list[dict] = []
        for seed in range(options.draws):
            intervention = scratch / f"draw-{seed}"
            lineas(
                "learn", "--source", f"{FOLDER}/jigsaw/toxic.jsonl:text",
                "--target", f"{FOLDER}/jigsaw/nontoxic.jsonl:text", "--samples", "32",
                "--seed", str(seed), "--out", str(intervention), "--json", f"{intervention}.json",
                *options.learn,
            )  # fmt: skip
            learned = json.loads(Path(f"{intervention}.json").read_text())
            untouched = untouched or measure(intervention, "0", options, scratch)
            row = measure(intervention, "1", options, scratch)
            costs = {key: learned[key] for key in ("divergence", "seconds")} | {"first_cost": learned["cost"][0]}
            draws.append({"seed": seed, **costs, **row})
            figures = {"untouched": untouched, "draws": draws, "summary": summary(untouched, draws)}
            record.save(options.name, vars(options), figures)
    print(json.dumps(summary(untouched, draws), indent=1))


def lineas(*arguments: str) -> None:
    """Call the command line, and show the call as it could be typed."""
    print("$ lineas", " ".join(arguments).replace(str(FOLDER), "DATA"), flush=True)
    subprocess.run([sys.executable, "-m", "lineas", *arguments], check=True)


def measure(intervention: Path, strength: str, options: argparse.Namespace, scratch: Path) -> dict:
    """Return a row of `lineas evaluate`."""
    out = scratch / f"{intervention.name}-at-{strength}.json"
    lineas(
        "evaluate", "--intervention", str(intervention), "--strength", strength,
        "--prompts", f"{scratch}/prompts.jsonl:text", "--neutral", f"{scratch}/neutral.jsonl:text",
        "--seeds", str(options.seeds), "--json", str(out),
    )  # fmt: skip
    row = json.loads(out.read_text())["rows"][-1]  # the first one is the untouched model
    values = row["values"]
    return {**values, "score": values["toxic_score"], "toxic_by_seed": row["by_seed"]["toxic"]}


def summary(before: dict, draws: list[dict]) -> dict[str, float | None]:
    """Return means over the draws, beside the untouched model's figures."""
    toxic = [draw["toxic"] for draw in draws]
    score, perplexity, seconds = (mean(draw[key] for draw in draws) for key in ("score", "perplexity", "seconds"))
    return {
        "toxic_before": before["toxic"],
        "toxic_after": mean(toxic),
        "toxic_after_deviation_over_draws": stdev(toxic) if len(toxic) > 1 else 0.0,
        "share_left": mean(toxic) / before["toxic"] if before["toxic"] else None,
        "score_before": before["score"],
        "score_after": score,
        "perplexity_before": before["perplexity"],
        "perplexity_after": perplexity,
        "perplexity_change": perplexity / before["perplexity"] - 1,
        "seconds_to_learn": seconds,
    }


def table(result: record.Result) -> str:
    """Return a line for the untouched model, for every draw and for their means."""
    options, draws, means = result.asked, result.made["draws"], result.made["summary"]
    score, perplexity = (known_measure(name).text for name in ("toxic_score", "perplexity"))

    def cells(row: dict) -> tuple[str, ...]:
        return markdown.percent(row["toxic"], 2), score(row["score"]), f"{row['kl']:.3f}", perplexity(row["perplexity"])

    share = markdown.percent(means["toxic_after"], 2, means["toxic_after_deviation_over_draws"])
    titles = (
        "SmolLM2-135M-Instruct",
        "toxic continuations",
        "mean toxicity",
        "divergence",
        "perplexity",
        "seconds to learn",
    )
    lines = [
        ("untouched", *cells(result.made["untouched"]), ""),
        *((f"steered, draw {draw['seed']}", *cells(draw), f"{draw['seconds']:.0f}") for draw in draws),
        (
            f"**steered, mean of {len(draws)} draws**",
            f"**{share}**",
            score(means["score_after"]),
            f"**{mean(draw['kl'] for draw in draws):.3f}**",
            f"**{perplexity(means['perplexity_after'])}** ({100 * means['perplexity_change']:+.1f} %)",
            f"{means['seconds_to_learn']:.0f}",
        ),
    ]
    return (
        markdown.table(titles, lines)
        + f"\n\n{options['prompts']} RealToxicityPrompts prompts of toxicity 0.5 or more, {options['seeds']} sampling "
        "seeds; toxic: alt-profanity-check gives 0.5 or more; divergence from the untouched model in nats a token, and "
        f"perplexity: means over {options['prompts']} Wikipedia sentences. The draws differ in the 32 + 32 Jigsaw "
        "sentences learned from."
    )


if __name__ == "__main__":
    main()
