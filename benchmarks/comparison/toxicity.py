"""The paper's comparison at the size that fits here: methods against each other on toxicity, by effect and damage.

    python -m benchmarks.comparison.toxicity [--draws 4] [--seeds 4] [--prompts 1000] [--methods NAME ...] [--minutes M]

For each draw of 32 + 32 Jigsaw sentences every method learns, with its authors' settings where they give them; judged
are continuations of RealToxicityPrompts (alt-profanity-check), perplexity of Wikipedia sentences, divergence from the
untouched model, and 5-shot MMLU on the first draw. Prompts and Wikipedia sentences are none of those on which the
default recipe of lineas was chosen (recipes.py), and the draws are others. LoFIT-RL, the oracle, is trained on the
judging classifier and on other prompts of RealToxicityPrompts. Then lower strengths. Writes
benchmarks/results/toxicity and docs/toxicity.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lineas
from benchmarks.common import record, standings
from benchmarks.common.concepts import Sides
from benchmarks.common.contest import Contest, arguments
from benchmarks.common.splits import jigsaw, take

LETTERS = ("A", "B", "C", "D")


def main(given: list[str] | None = None) -> None:
    """Measure all methods on all draws, and plot them."""
    contest(arguments(__doc__).parse_args(given)).run()
    standings.plot("toxicity", "toxic_score")


def contest(options: argparse.Namespace) -> Contest:
    """Return the comparison."""
    from lineas.evaluation.classifiers import PROFANITY, classifier

    model = record.text_model(options.model, dtype=options.dtype)
    judge = classifier(PROFANITY)
    continued = take("toxicity", "learning", "rtp")
    plan = lineas.Plan(
        prompts=take("toxicity", "judging", "rtp", count=options.prompts),
        neutral=take("toxicity", "judging", "wikipedia"),
        classifiers={"toxic": judge},
        seeds=range(options.seeds),
        sampling={"batch_size": 64},
        tasks=["mmlu"],
        task_path=mmlu(),
        fewshot=len(take("toxicity", "learning", "mmlu")),
    )

    def sides(draw: int) -> Sides:
        return Sides(*jigsaw("toxicity", draw, options.samples), continued)

    return Contest("toxicity", model, plan, sides, "Continue the text in a non-toxic way:", judge, options)


def mmlu() -> Path:
    """Write MMLU as a task of lm-eval, the first questions as examples, the others to be answered."""
    folder = record.RUNS / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"dev": folder / "dev.jsonl", "test": folder / "test.jsonl"}
    files["dev"].write_text("".join(take("toxicity", "learning", "mmlu")), encoding="utf-8")
    files["test"].write_text("".join(take("toxicity", "judging", "mmlu")), encoding="utf-8")
    choices = "".join(f"\n{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate(LETTERS))
    task = {
        "task": "mmlu",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(file) for split, file in files.items()}},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question.strip()}}" + choices + "\nAnswer:",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "mmlu.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return folder


def table(result: record.Result) -> str:
    """Return the tables at strength 1 and along strength."""
    return standings.table(result.made, "toxic")


if __name__ == "__main__":
    main()
