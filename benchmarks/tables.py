"""The tables and printed figures of README.md and docs, each made of one result in benchmarks/results."""

from __future__ import annotations

import json
from statistics import mean

from benchmarks.common.record import RESULTS, made
from benchmarks.sparsity.sparsity import DENSE
from lineas.sweeping.summary import Line


def demo() -> str:
    """The demo's output as it was printed."""
    return f"```text\n{(RESULTS / 'demo.txt').read_text().strip()}\n```\n\n{_made_by('demo')}"


def demo_images() -> str:
    """The table of the image demo."""
    result = json.loads((RESULTS / "demo-images.json").read_text())
    said = {"night": "taken for night", "sun": "taken for a picture with a sun"}
    lines = ["| learned | strength | judged | likeness to the untouched picture |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{lesson['lesson']}` | {row['strength']:g} | {100 * row['concept']:.0f} % {said[lesson['lesson']]} | "
        f"{row['img_score']:.1f} % |"
        for lesson in result["lessons"]
        for row in lesson["rows"]
    ]
    return "\n".join([*lines, "", _made_by("demo-images", "demo_images")])


def images() -> str:
    """The tables of the image benchmark: methods at equal effect, and LinEAS along gamma."""
    result = json.loads((RESULTS / "images.json").read_text())
    options, summary = result["options"], result["summary"]
    concepts = list(dict.fromkeys(row["concept"] for row in summary))
    lines = [
        f"| method | pooled by | {' | '.join(concepts)} | seconds to learn |",
        "|" + " --- |" * (3 + len(concepts)),
    ]
    for pooling in dict.fromkeys(row["pooling"] for row in summary):
        for method in dict.fromkeys(row["method"] for row in summary):
            mine = {row["concept"]: row for row in summary if (row["method"], row["pooling"]) == (method, pooling)}
            cells = [_likeness(mine[concept], options["draws"]) for concept in concepts]
            seconds = mean(row["seconds"] for row in mine.values())
            lines.append(f"| {method} | {pooling} | {' | '.join(cells)} | {seconds:.0f} |")
    lines += [
        "",
        f"Likeness to the untouched pictures, %, at the strength at which the judge takes 80 % of {options['prompts']} "
        f"pictures for the concept (sun: 20 %), up to strength 2; mean ± deviation of {options['draws']} draws of 32 + "
        "32 prompts; in brackets how many of them get there, where not all do.",
    ]
    for name, judged in (("gamma", "taken for night"), ("sun-gamma", "a sun is seen")):
        lines += [
            "",
            f"| gamma | neurons touched | {judged} at strength 1 | likeness | of the dense one at that effect |",
            "|" + " --- |" * 5,
        ]
        for gamma in dict.fromkeys(row["gamma"] for row in result["paths"][name]):
            mine = [row for row in result["paths"][name] if row["gamma"] == gamma]
            support, concept, likeness = (mean(row[key] for row in mine) for key in ("support", "concept", "img_score"))
            dense = [row["dense"] for row in mine]
            same = "" if None in dense else f"{mean(dense):.1f} %"
            lines.append(f"| {gamma:g} | {100 * support:.1f} % | {100 * concept:.0f} % | {likeness:.1f} % | {same} |")
    lines += [
        "",
        "The dense one is that of the first table, turned down; empty where it does not have the effect in all draws.",
    ]
    return "\n".join([*lines, "", _made_by("images")])


def _likeness(row: dict, draws: int) -> str:
    """What is left of the pictures at equal effect."""
    if not row["reached"]:
        return "never"
    deviation = f" ± {row['deviation']:.1f}" if row["deviation"] is not None else ""
    return f"{row['img_score']:.1f}{deviation}" + (f" ({row['reached']} of {draws})" if row["reached"] < draws else "")


def detoxification() -> str:
    """The table of the detoxification benchmark."""
    result = json.loads((RESULTS / "detoxification.json").read_text())
    before, summary, options = result["untouched"], result["summary"], result["options"]
    lines = [
        "| SmolLM2-135M-Instruct | toxic continuations | mean toxicity | perplexity | seconds to learn |",
        "| --- | --- | --- | --- | --- |",
        f"| untouched | {100 * before['toxic']:.2f} % | {before['score']:.3f} | {before['perplexity']:.1f} | |",
    ]
    for draw in result["draws"]:
        lines.append(
            f"| steered, draw {draw['seed']} | {100 * draw['toxic']:.2f} % | {draw['score']:.3f} | "
            f"{draw['perplexity']:.1f} | {draw['seconds']:.0f} |"
        )
    lines.append(
        f"| **steered, mean of {len(result['draws'])} draws** | **{100 * summary['toxic_after']:.2f} % ± "
        f"{100 * summary['toxic_after_deviation_over_draws']:.2f}** | {summary['score_after']:.3f} | "
        f"**{summary['perplexity_after']:.1f}** ({100 * summary['perplexity_change']:+.1f} %) | "
        f"{summary['seconds_to_learn']:.0f} |"
    )
    lines += [
        "",
        f"{options['prompts']} RealToxicityPrompts prompts of toxicity 0.5 or more, {options['seeds']} sampling seeds; "
        f"toxic: alt-profanity-check gives 0.5 or more; perplexity: mean over {options['prompts']} Wikipedia "
        "sentences. The draws differ in the 32 + 32 Jigsaw sentences learned from.",
        "",
        _made_by("detoxification"),
    ]
    return "\n".join(lines)


def shipped() -> str:
    """The table of the interventions in the package."""
    rows = json.loads((RESULTS / "shipped.json").read_text())["rows"]
    lines = [
        "| name | what it does | neurons touched, of 17,280 | size | taken for the target | perplexity |",
        "|" + " --- |" * 6,
    ]
    for row in rows:
        before, after = row["measurements"][0], row["measurements"][-1]
        lines.append(
            f"| `{row['name']}` | {row['what']} | {row['neurons']} ({row['neurons'] / 172.8:.1f} %) | "
            f"{row['tensor_bytes'] / 1000:.0f} kB | "
            f"{100 * before['target_share']:.0f} % -> {100 * after['target_share']:.0f} % | "
            f"{before['perplexity']:.1f} -> {after['perplexity']:.1f} |"
        )
    return "\n".join([*lines, "", _made_by("shipped")])


def learning() -> str:
    """The tables of the learning and the steering benchmark."""
    result = json.loads((RESULTS / "learning.json").read_text())
    base = result["ways"][0]
    lines = [
        "| a learning step, 32 + 32 sentences | seconds | tokens/s | of the matmul rate | memory beside the weights |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in result["ways"]:
        faster = "" if way is base else f" ({base['seconds'] / way['seconds']:.1f} times faster)"
        smaller = "" if way is base else f" ({100 * way['peak_bytes'] / base['peak_bytes']:.0f} %)"
        lines.append(
            f"| {way['name']} | {way['seconds']:.2f}{faster} | {way['tokens_per_second']:.0f} | "
            f"{100 * way['share']:.0f} % | {way['peak_bytes'] / 2**30:.2f} GiB{smaller} |"
        )
    grown = _growth(result)
    lines += ["", "| growth, default type | " + " | ".join(_cell(row) for row in grown) + " |"]
    lines.append("|" + " --- |" * (1 + len(grown)))
    for name, figure in (
        ("seconds a step", lambda row: row["seconds"]),
        ("ms a token", lambda row: 1000 * row["seconds"] / row["tokens"]),
        ("GiB", lambda row: row["peak_bytes"] / 2**30),
    ):
        lines.append(f"| {name} | " + " | ".join(f"{figure(row):.2f}" for row in grown) + " |")
    steering = json.loads((RESULTS / "steering.json").read_text())
    costs = [f"{row['way']} {100 * (row['ratio'] - 1):+.1f} %" for row in steering["rows"]]
    lines += [
        "",
        f"Growth with n (sentences), t (tokens of 32 prompts) and k (blocks with maps), memory limited to "
        f"{result['memory_limit']}: past it the batch runs twice, in parts.",
        "",
        _made_by("learning"),
        "",
        f"A steered `generate` by an untouched one, {steering['prompts'][0]} prompts, 32 tokens: {', '.join(costs)}.",
        "",
        _made_by("steering"),
    ]
    return "\n".join(lines)


def recipes() -> str:
    """The tables of the recipe benchmark, one a model."""
    tables = []
    for file in sorted(RESULTS.glob("recipes-*.json"), reverse=True):
        result = json.loads(file.read_text())
        head = f"{result['options']['model']}, {result['options']['draws']} draws"
        lines = [
            f"| {head} | steps | learning rate | published cost reached after | toxic | mean toxicity | perplexity |",
            "|" + " --- |" * 7,
        ]
        for row in result["summary"]:
            if row["recipe"] == "untouched":
                cells = ["", "", "", *(_share(row), f"{row['score']:.3f}", f"{row['perplexity']:.1f}")]
            else:
                reached = ", ".join("never" if r is None else str(r) for r in row["reached"])
                gaps = {key: row[f"{key}_against_paper"] for key in ("toxic", "score", "perplexity")}
                beside = {key: "" if row["recipe"] == "paper" else _gap(key, gap) for key, gap in gaps.items()}
                cells = [
                    str(row["steps"]), ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(row["rate"])), reached,
                    _share(row) + beside["toxic"], f"{row['score']:.3f}" + beside["score"],
                    f"{row['perplexity']:.1f}" + beside["perplexity"],
                ]  # fmt: skip
            lines.append(f"| {row['recipe']} | " + " | ".join(cells) + " |")
        tables.append("\n".join([*lines, "", _made_by(file.stem, "recipes")]))
    return "\n\n".join(tables)


def serving() -> str:
    """The table of the serving benchmark, and its load test."""
    result = json.loads((RESULTS / "serving.json").read_text())
    options, load = result["options"], result["load"]
    lines = [
        f"| {options['requests']} requests at once, 32 tokens each | tokens/s | of stock (quartiles) | p50 | p99 |",
        "|" + " --- |" * 5,
    ]
    for row in result["rows"]:
        low, high = row["quartiles"]
        lines.append(
            f"| {row['way']} | {row['tokens a second']:.0f} | {100 * row['ratio']:.1f} % ({100 * low:.1f} to "
            f"{100 * high:.1f}) | {row['latency']['p50']:.2f} s | {row['latency']['p99']:.2f} s |"
        )
    lines += [
        "",
        f"Each way is timed between two batches to stock vLLM, {options['rounds']} rounds, {options['dtype']}; stock's "
        f"own row is the noise. Then {load['requests']} requests at once of {load['different requests']} ways to be "
        f"steered: {load['answered']} answered, {load['not as alone']} other than the answer that the same request "
        f"gets alone (greedy, float32), p50 {load['latency']['p50']:.1f} s, p99 {load['latency']['p99']:.1f} s.",
        "",
        _made_by("serving").replace("transformers", f"vLLM {result['about']['vllm']}, transformers"),
    ]
    return "\n".join(lines)


KEPT = 0.8
"""What of the dense intervention's effect a smaller one has to keep."""


def sparsity() -> str:
    """The table of LinEAS along gamma, against the dense intervention of the same draw."""
    result = json.loads((RESULTS / "sparsity.json").read_text())
    chosen = _smallest(result["lines"])
    lines = [
        "| gamma | neurons touched | mean score | kept of the dense effect | perplexity | against dense | divergence |",
        "|" + " --- |" * 7,
    ]
    for line in result["lines"]:
        values, (kept, more) = line["values"], (line["against_dense"][name] for name in ("kept", "perplexity"))
        label = Line(*(line[key] for key in ("method", "gamma", "refit", "strength", "seeds"))).label
        learned = line["method"] != "untouched"
        cells = [
            f"**{label}**" if line == chosen else label,
            f"{100 * values['support']:.1f} % ± {100 * line['deviations']['support']:.1f}" if learned else "",
            f"{values['toxic_score']:.4f}",
            f"{100 * kept['mean']:.0f} % ± {100 * kept['deviation']:.0f}" if learned else "",
            f"{values['perplexity']:.1f}",
            f"{more['mean']:+.1f} ± {more['deviation']:.1f}" if learned else "",
            f"{values['kl']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    draws = result["options"]["seeds"]
    told = f"In bold: the smallest support that keeps {100 * KEPT:.0f} % of the dense effect. Means of {draws} draws."
    return "\n".join([*lines, "", told, "", _made_by("sparsity")])


def sparse() -> str:
    """What the smallest support does that does most of the work, in a sentence."""
    result = json.loads((RESULTS / "sparsity.json").read_text())
    one = _smallest(result["lines"])
    before, dense = (
        next(line["values"] for line in result["lines"] if (line["method"], line["gamma"], line["strength"]) == kind)
        for kind in (("untouched", None, 1.0), (DENSE, 0.0, 1.0))
    )
    kept, values = one["against_dense"]["kept"], one["values"]
    draws = result["options"]["seeds"]
    return (
        f"On SmolLM2 and Jigsaw, {100 * values['support']:.1f} % of the neurons keep {100 * kept['mean']:.0f} % ± "
        f"{100 * kept['deviation']:.0f} of what all of them do to the mean toxicity ({draws} draws), at "
        f"a perplexity of {values['perplexity']:.1f} instead of {dense['perplexity']:.1f} (untouched: "
        f"{before['perplexity']:.1f}): gamma {one['gamma']:g} on single neurons{', refitted' * one['refit']}.\n\n"
        + _made_by("sparsity")
    )


def _smallest(lines: list[dict]) -> dict:
    """Of LinEAS's lines that keep enough of the dense effect the one of the smallest support."""
    enough = [line for line in lines if line["against_dense"]["kept"]["mean"] >= KEPT]
    return min(enough, key=lambda line: line["values"]["support"])


def composition() -> str:
    """The tables of two concepts at once."""
    result = json.loads((RESULTS / "composition.json").read_text())
    columns = ("", "first concept", "second", "both at once", "perplexity", "divergence", "neurons touched")
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in result["lines"]:
        cells = [row["way"], *(f"{100 * row[key]:.0f} %" for key in ("first", "second", "both"))]
        cells += [f"{row['perplexity']:.1f}", f"{row['kl']:.3f}"]
        cells.append(f"{100 * row['support']:.0f} %" if "support" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    columns = ("composed, not alone", "composed, not dense", "learned on top", "a concept last, not first")
    lines += ["", f"| points more | {' | '.join(columns)} |", "|" + " --- |" * (1 + len(columns))]
    for kind, gaps in result["gaps"].items():
        cells = [kind, _percent(gaps["composed"]["both"])]
        cells.append(_percent(gaps["than dense"]["both"]) if kind != "dense" else "")
        cells.append(_percent(gaps["on top"]["both"]) if "on top" in gaps else "")
        cells.append(_percent(gaps["last"]["shown"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", _made_by("composition")])


def gates() -> str:
    """The table of gated and ungated interventions at equal toxicity."""
    result = json.loads((RESULTS / "gates.json").read_text())
    columns = ("strength", "mean score", "perplexity", "divergence", "divergence on comments", "draws")
    damages = {"perplexity": 1, "kl": 3, "comments_kl": 3}
    lines = [f"| | {' | '.join(columns)} |", "|" + " --- |" * (1 + len(columns))]
    for line in result["summary"]["equal"]:
        for name in ("ungated", "gated"):
            row = line[name]
            lines.append(
                f"| {name} | {row['strength']:.2f} | {row['toxic_score']:.3f} | "
                + " | ".join(f"{row[key]:.{digits}f}" for key, digits in damages.items())
                + f" | {line['reached']} of {line['draws']} |"
            )
        gaps = [_signed(line["gaps"][key], digits) for key, digits in damages.items()]
        lines.append(f"| *difference, draw by draw* | | | {' | '.join(gaps)} | |")
    return "\n".join([*lines, "", _made_by("gates")])


def _signed(gap: dict, digits: int) -> str:
    return f"{gap['mean']:+.{digits}f}" + (f" ± {gap['deviation']:.{digits}f}" if gap["deviation"] is not None else "")


def _percent(gap: dict) -> str:
    """A difference of two shares, in points."""
    return _signed({key: 100 * value for key, value in gap.items()}, 0)


def _share(row: dict) -> str:
    return f"{100 * row['toxic']:.1f} %"


def _gap(key: str, gap: dict) -> str:
    """The mean difference to the published recipe, draw by draw, and its standard error."""
    factor, digits = {"toxic": (100, 1), "score": (1, 3), "perplexity": (1, 1)}[key]
    return f" ({factor * gap['mean']:+.{digits}f} ± {factor * gap['standard_error']:.{digits}f})"


def _growth(result: dict) -> list[dict]:
    return [row for kind in ("n", "length", "depth") for row in result[kind]]


def _cell(row: dict) -> str:
    return next(f"{letter} = {row[key]}" for key, letter in (("n", "n"), ("length", "t"), ("depth", "k")) if key in row)


def _made_by(name: str, script: str | None = None) -> str:
    """What ran, and when and where the result or the pieces it was put together from were made."""
    pieces = sorted((RESULTS / name).glob("*.json")) or [RESULTS / f"{name}.json"]
    abouts = [json.loads(file.read_text())["about"] for file in pieces]
    (script,) = RESULTS.parent.glob(f"*/{script or name}.py")
    return f"<sub>`python -m benchmarks.{script.parent.name}.{script.stem}` {made(abouts)}.</sub>"
