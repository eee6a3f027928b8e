"""Effect and damage side by side, at several strengths, as rows of numbers and as plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from lineas.errors import LineasError
from lineas.evaluation.perplexity import perplexity
from lineas.evaluation.toxicity import toxicity_scores
from lineas.intervention import Intervention
from lineas.models.text import TextModel
from lineas.steering import steer


@dataclass(frozen=True)
class Measurement:
    """What one strength does.

    Args:
        strength: of the intervention; 0 is the untouched model.
        toxic: share of continuations that the classifier gives 0.5 or more.
        score: mean probability of the classifier.
        perplexity: mean over neutral sentences.
        toxic_by_seed: `toxic` for each sampling seed.
    """

    strength: float
    toxic: float
    score: float
    perplexity: float
    toxic_by_seed: list[float]


def measure(
    model: TextModel,
    intervention: Intervention,
    prompts: Sequence[str],
    neutral: Sequence[str],
    strengths: Sequence[float] = (0.0, 1.0),
    seeds: Sequence[int] = (0,),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Measurement], dict[float, list[str]]]:
    """Toxicity of continuations and perplexity of neutral sentences, at each strength.

    The paper's protocol: one continuation of 32 tokens a prompt, temperature 1, top-p 0.3, repetition penalty 1.2
    (arXiv 2503.10679, section 4).

    Args:
        model: not steered yet.
        intervention: what to judge.
        prompts: texts to continue.
        neutral: sentences whose perplexity should stay as it is.
        strengths: 0 gives the untouched model's row.
        seeds: of the sampling; shares are means over them.
        progress: called with the number of prompts done.

    Returns:
        (one Measurement a strength, the first seed's continuations by strength).
    """
    if not strengths or not seeds:
        raise LineasError("measuring needs at least one strength and one seed.")
    rows: list[Measurement] = []
    texts: dict[float, list[str]] = {}
    for strength in strengths:
        with steer(model, intervention, strength=strength):
            by_seed: list[list[float]] = []
            for seed in seeds:
                made = model.generate(prompts, seed=seed, progress=progress)
                texts.setdefault(strength, made)
                by_seed.append(toxicity_scores(made))
            shares = [mean(score >= 0.5 for score in scores) for scores in by_seed]
            rows.append(
                Measurement(strength, mean(shares), mean(map(mean, by_seed)), perplexity(model, neutral), shares)
            )
    return rows, texts


def plot(intervention: Intervention, rows: Sequence[Measurement], path: Path) -> Path:
    """One PNG of three panels: the cost while learning, where the change sits, effect against damage.

    Raises:
        LineasError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LineasError("plots need matplotlib: pip install 'lineas[plots]'.") from None
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    learning, where, judged = figure.subplots(1, 3)
    cost, maps = intervention.facts.get("cost", []), intervention.maps
    learning.plot(range(1, len(cost) + 1), cost, color="#2b6cb0")
    learning.set(title="Distance to the target while learning", xlabel="step", ylabel="cost", ylim=(0, None))
    layers = [next((part for part in name.split(".") if part.isdigit()), str(i)) for i, name in enumerate(maps)]
    where.bar(range(len(maps)), [100 * float(m.support().float().mean()) for m in maps.values()], color="#90cdf4")
    where.set(title="Where the change sits", xlabel="layer", ylabel="neurons touched, % (bars)", ylim=(0, 105))
    every = max(1, len(layers) // 15)
    where.set_xticks(range(0, len(layers), every), layers[::every])
    size = where.twinx()
    size.plot(range(len(maps)), [float(m.shift.abs().mean()) for m in maps.values()], color="#c05621", marker="o")
    size.set(ylabel="mean |shift| (line)", ylim=(0, None))
    size.spines["top"].set_visible(False)
    judged.plot([100 * r.toxic for r in rows], [r.perplexity for r in rows], color="#2b6cb0", marker="o")
    for row in rows:
        judged.annotate(f" strength {row.strength:g}", (100 * row.toxic, row.perplexity))
    judged.set(title="Effect and damage", xlabel="rude continuations, %", ylabel="perplexity of neutral sentences")
    judged.set(xlim=(0, 118 * max(r.toxic for r in rows) + 1), ylim=(0, 1.2 * max(r.perplexity for r in rows)))
    for axes, spines in ((learning, ["top", "right"]), (where, ["top"]), (judged, ["top", "right"])):
        axes.spines[spines].set_visible(False)
    figure.savefig(path, dpi=110)
    return path
