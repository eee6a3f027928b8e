"""The paper's table on the paper's models, with its settings, beside the published numbers.

    python -m benchmarks.comparison.paper --model Qwen/Qwen2.5-1.5B [--tet FILE[:column]] [--minutes M]

Needs the weights, a GPU and access to the hub: RealToxicityPrompts, the classifier s-nlp/roberta_toxicity_classifier
and MMLU come from there; Jigsaw's and Wikipedia's sentences, and the prompts of TET, are given as files. Settings:
32 + 32 Jigsaw sentences, 1,000 prompts, 4 seeds, 5-shot MMLU; LinEAS by its published recipe on the post norms, Lin-AcT
and ITI-c on o_proj, CAA on all blocks (arXiv 2503.10679, section 4 and table 1). Beside them LinEAS by the default of
lineas. Resumable. Writes benchmarks/results/paper-MODEL, a file a row, and prints what the paper gives next to what was
measured.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lineas
from benchmarks.common import record
from benchmarks.common.contest import Contest, Sides, arguments
from benchmarks.common.splits import take
from benchmarks.common.standings import summary
from lineas.prompts import read_prompts

METHODS = ["untouched", "prompt", "caa-all", "iti-c", "lin-act", "lineas-paper", "lineas", "lofit-rl"]
COLUMNS = ("RTP %", "TET %", "perplexity", "MMLU %")
PUBLISHED: dict[str, dict[str, tuple[float, float, float, float]]] = {  # arXiv 2503.10679, table 1, n = 32
    "Qwen2.5-1.5B": {
        "untouched": (3.00, 23.09, 13.67, 60.95),
        "prompt": (4.07, 21.02, 13.65, 60.96),
        "caa-all": (1.15, 5.77, 19.30, 37.67),
        "iti-c": (1.87, 18.16, 12.39, 60.88),
        "lin-act": (1.50, 13.88, 13.88, 60.09),
        "lineas-paper": (1.07, 12.70, 14.10, 59.97),
        "lofit-rl": (0.37, 4.36, 14.12, 59.74),
    },
    "gemma-2-2b": {
        "untouched": (4.00, 13.39, 14.79, 53.03),
        "prompt": (4.60, 12.32, 14.81, 53.18),
        "caa-all": (0.80, 2.44, 23.52, 26.86),
        "iti-c": (1.17, 7.15, 14.00, 52.78),
        "lin-act": (1.60, 7.76, 14.78, 52.43),
        "lineas-paper": (0.73, 4.02, 15.46, 52.22),
        "lofit-rl": (0.40, 1.76, 15.43, 52.17),
    },
    "Qwen2.5-7B": {
        "untouched": (3.92, 25.16, 10.67, 74.26),
        "prompt": (6.80, 21.22, 10.65, 74.23),
        "caa-all": (1.20, 9.25, 12.83, 48.58),
        "iti-c": (2.63, 19.98, 9.63, 74.08),
        "lin-act": (2.72, 21.64, 11.42, 72.18),
        "lineas-paper": (1.95, 14.95, 10.91, 73.67),
        "lofit-rl": (1.10, 7.11, 10.91, 73.87),
    },
}


def main(given: list[str] | None = None) -> None:
    """Measure the methods of the table on RealToxicityPrompts, then on TET where its prompts are given."""
    from lineas.evaluation.classifiers import classifier

    parser = arguments(__doc__)
    parser.add_argument("--rtp", default="hf://datasets/allenai/real-toxicity-prompts/prompts.jsonl:prompt.text")
    parser.add_argument("--tet", default=None, help="prompts of TET, FILE[:column]")
    parser.add_argument("--toxic", required=True, help="Jigsaw's toxic comments, FILE[:column]")
    parser.add_argument("--nontoxic", required=True, help="Jigsaw's other comments, FILE[:column]")
    parser.add_argument("--neutral", required=True, help="Wikipedia's sentences, FILE[:column]")
    parser.add_argument("--classifier", default="s-nlp/roberta_toxicity_classifier@toxic")
    parser.add_argument("--tasks", nargs="*", default=["mmlu"])
    parser.add_argument("--task-path", default=None)
    parser.add_argument("--fewshot", type=int, default=5)
    parser.set_defaults(methods=METHODS, draws=1)
    options = parser.parse_args(given)
    judge = classifier(options.classifier)
    texts = {name: read_prompts(getattr(options, name)) for name in ("rtp", "toxic", "nontoxic")}
    continued = take("paper", "learning", "given/rtp", texts=texts["rtp"])
    model = record.text_model(options.model, dtype=options.dtype)

    def sides(draw: int) -> Sides:
        source, target = (
            take("paper", "learning", f"given/{side}", draw, options.samples, texts[side])
            for side in ("toxic", "nontoxic")
        )
        return Sides(source, target, continued)

    plan = lineas.Plan(
        prompts=take("paper", "judging", "given/rtp", count=options.prompts, texts=texts["rtp"]),
        neutral=read_prompts(options.neutral),
        classifiers={"toxic": judge},
        seeds=range(options.seeds),
        sampling={"batch_size": 64},
        tasks=options.tasks,
        task_path=options.task_path,
        fewshot=options.fewshot,
    )
    short = Path(model.name).name
    instruction = "Continue the text in a non-toxic way:"
    name = f"paper-{short}"
    lines = summary(Contest(name, model, plan, sides, instruction, judge, options).run())
    tet: dict[str, dict] = {}
    if options.tet:
        other = replace(plan, prompts=read_prompts(options.tet), neutral=(), tasks=())
        again = Contest(f"{name}-tet", model, other, sides, instruction, judge, options, learned_in=name).run()
        tet = {line["system"]: line for line in summary(again)}
    show(short, lines, tet, options.tasks)


def show(model: str, lines: list[dict], tet: dict[str, dict], tasks: list[str]) -> None:
    """Print a line for each method: measured, and in brackets what the paper gives."""
    published = PUBLISHED.get(model, {})
    print("method", *COLUMNS, sep=" | ")
    for line in lines:
        name = line["system"]
        task = line.get(tasks[0]) if tasks else None
        means = [line.get("toxic"), tet.get(name, {}).get("toxic"), line.get("perplexity"), task]
        measured = [None if m is None else unit * m["mean"] for m, unit in zip(means, (100, 100, 1, 100))]
        stated = published.get(name, (None,) * len(COLUMNS))
        print(name, *(_cell(*pair) for pair in zip(measured, stated)), sep=" | ")


def _cell(measured: float | None, stated: float | None) -> str:
    return ("-" if measured is None else f"{measured:.2f}") + ("" if stated is None else f" ({stated:.2f})")


if __name__ == "__main__":
    main()
