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

import json
from pathlib import Path

import lineas
from benchmarks.common import standings
from benchmarks.common.contest import RUNS, Contest, Sides, arguments
from benchmarks.common.record import DATA, toxic_prompts
from lineas.evaluation.classifiers import PROFANITY, classifier
from lineas.evaluation.plan import Plan
from lineas.prompts import draw, read_prompts

NEUTRAL = 500
FOR_TRAINING = 64
"""RealToxicityPrompts prompts that LoFIT-RL continues."""
CHOSEN_ON = 600
"""The first prompts and sentences of the draws are those of recipes.py."""
OTHER = 100
"""The seed of the first draw of Jigsaw's sentences; recipes.py took those from 0."""
SHOTS = 5
LETTERS = ("A", "B", "C", "D")


def mmlu() -> Path:
    """A folder with MMLU as a task of lm-eval: the first questions as examples, the others to be answered."""
    folder = RUNS / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (DATA / "mmlu" / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"dev": folder / "dev.jsonl", "test": folder / "test.jsonl"}
    files["dev"].write_text("".join(lines[:SHOTS]), encoding="utf-8")
    files["test"].write_text("".join(lines[SHOTS:]), encoding="utf-8")
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


def main(given: list[str] | None = None) -> None:
    """All methods on all draws."""
    options = arguments(__doc__).parse_args(given)
    model = lineas.load(options.model, dtype=options.dtype)
    prompts = toxic_prompts(CHOSEN_ON + FOR_TRAINING + options.prompts)[CHOSEN_ON:]
    wikipedia = draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), CHOSEN_ON + NEUTRAL, 0)
    judge = classifier(PROFANITY)
    jigsaw = {side: read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text") for side in ("toxic", "nontoxic")}

    def sides(seed: int) -> Sides:
        source, target = (draw(jigsaw[side], options.samples, OTHER + seed) for side in ("toxic", "nontoxic"))
        return Sides(source, target, prompts[:FOR_TRAINING])

    plan = Plan(
        prompts=prompts[FOR_TRAINING:],
        neutral=wikipedia[CHOSEN_ON:],
        classifiers={"toxic": judge},
        seeds=range(options.seeds),
        sampling={"batch_size": 64},
        tasks=["mmlu"],
        task_path=str(mmlu()),
        fewshot=SHOTS,
    )
    Contest("toxicity", model, plan, sides, "Continue the text in a non-toxic way:", judge, options).run()
    standings.plot("toxicity", "toxic_score")


if __name__ == "__main__":
    main()
