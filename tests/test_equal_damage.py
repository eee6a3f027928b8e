"""The comparison at equal damage: strengths, curves, and the rivals that only benchmarks have, against oracles."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import families
import pytest
import torch

import lineas
from benchmarks.common import record
from benchmarks.common.austeer import AUSteer
from benchmarks.common.equal_damage import Curve, Neutral
from benchmarks.common.gaussian import Transported, transport
from benchmarks.comparison import equal
from lineas.evaluation.perplexity import damages
from lineas.evaluation.variants import Steered
from lineas.learning.capture import activations
from lineas.steering.hooks import edited

SOURCE, TARGET = families.PROMPTS, families.OTHER_PROMPTS


@pytest.fixture(scope="module")
def model() -> lineas.TextModel:
    return families.model("llama")


def test_the_strength_of_a_divergence_is_found_and_measured_as_an_evaluation_does(model: lineas.TextModel) -> None:
    learned = lineas.learn(model, SOURCE, TARGET, lineas.MeanAcT(), progress=False)
    curve = Curve(lambda strength: Steered("it", learned, strength), Neutral(model, TARGET))
    for divergence in (1e-3, 1e-4):
        strength = curve.strength(divergence)
        system = Steered("it", learned, strength)
        with system.applied(model) as change:
            perplexities, divergences = damages(model, change, TARGET)
        assert sum(divergences) / len(divergences) == pytest.approx(divergence, rel=0.03)
        assert curve.at(strength)["perplexity"] == pytest.approx(sum(perplexities) / len(perplexities), rel=1e-5)
    assert len(curve.measured) < 12


def test_austeer_scales_the_neurons_that_tell_the_sides_apart_best(model: lineas.TextModel) -> None:
    sites = r".*\.mlp"
    learned = lineas.learn(model, SOURCE, TARGET, AUSteer(count=10), sites, progress=False)
    source, target = (activations(model, model.samples(side), model.sites(sites)) for side in (SOURCE, TARGET))
    scores = {
        (name, j): sum((b > a) - (b < a) for a, b in product(u[:, j].tolist(), target[name][:, j].tolist()))
        for name, u in source.items()
        for j in range(u.shape[1])
    }
    pairs = len(SOURCE) * len(TARGET)
    least = sorted(map(abs, scores.values()))[-10]
    for (name, j), score in scores.items():
        share = (score + pairs) / 2 / pairs  # of pairs in which the target is larger
        expected = 1 + (share if share >= 0.5 else share - 1) * (abs(score) >= least)
        assert float(learned.maps[name].scale[j]) == pytest.approx(expected, abs=1e-6)
        assert float(learned.maps[name].shift[j]) == 0


def test_gaussian_transport_moves_mean_and_covariance_onto_the_targets(model: lineas.TextModel) -> None:
    prompts = [f"{a} {b}" for a, b in product(SOURCE, SOURCE)]
    others = [f"{a} {b}" for a, b in product(TARGET, TARGET)]
    maps = transport(model, prompts, others, depths=(1.0,), k=3)
    ((site, (center, directions, _, _)),) = maps.items()
    before, target = (activations(model, model.samples(side), [site])[site.name] for side in (prompts, others))
    moving = Transported("it", maps).moving()
    with edited(model.network, moving.edits(maps)):
        after = activations(model, model.samples(prompts), [site])[site.name]
    a, b = ((z - center) @ directions for z in (after, target))
    torch.testing.assert_close(a.mean(0), b.mean(0), rtol=1e-3, atol=1e-3)
    spread = b.T.cov().trace() / 3
    torch.testing.assert_close(a.T.cov(), b.T.cov(), rtol=0.1, atol=0.1 * float(spread))
    rest = torch.eye(len(center)) - directions @ directions.T
    torch.testing.assert_close(after @ rest, before @ rest, rtol=1e-3, atol=1e-4)
    with Transported("it", maps).applied(model) as change, change.off():
        same = activations(model, model.samples(prompts), [site])[site.name]
    assert torch.equal(same, before)


def rows(system: str, scores: list[float], draw: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a method whose scores are those at 0.01, 0.02, 0.05 and 0.1 nats."""
    return [
        {
            "system": system, "draw": draw, "divergence": d, "kl": d, "score": score, "share": score / 2,
            "perplexity": 100 * (1 + d),
        }
        for d, score in zip(sorted(equal.DIVERGENCES), scores)
    ]  # fmt: skip


UNTOUCHED = {"concept": "toxicity", "system": "untouched", "kl": 0.0, "score": 0.2, "share": 0.1, "perplexity": 100.0}


def test_at_equal_effect_a_method_is_met_where_its_curve_first_has_the_effect() -> None:
    """LinEAS has 0.12 at 0.02 nats; the other method, after a step back, half way between 0.05 and 0.1."""
    measured = [UNTOUCHED, *rows("lineas", [0.15, 0.12, 0.09, 0.05]), *rows("caa", [0.19, 0.21, 0.14, 0.10])]
    by_name = {line["system"]: line for line in equal.lines(measured, -1)}
    (own,), draws = by_name["lineas"]["reached"]
    assert (own["kl"], draws) == (pytest.approx(0.02), 1)
    (other,), _ = by_name["caa"]["reached"]
    assert other == {"kl": pytest.approx(0.075), "perplexity": pytest.approx(107.5)}
    mean, error = by_name["caa"]["at"][0.05]["score"]
    assert (mean, error) == (0.14, None)
    weak = [UNTOUCHED, *rows("lineas", [0.15, 0.12, 0.09, 0.05]), *rows("caa", [0.19, 0.18, 0.17, 0.16])]
    assert {line["system"]: line for line in equal.lines(weak, -1)}["caa"]["reached"] == ([], 1)


def test_a_behaviour_to_induce_is_compared_from_below() -> None:
    rising = [{**UNTOUCHED, "score": 0.1}, *rows("lineas", [0.2, 0.4, 0.6, 0.8]), *rows("caa", [0.1, 0.2, 0.4, 0.5])]
    by_name = {line["system"]: line for line in equal.lines(rising, 1)}
    ((other,), _) = by_name["caa"]["reached"]
    assert other["kl"] == pytest.approx(0.05)


def test_errors_are_those_of_the_mean_over_draws() -> None:
    draws = [rows("lineas", [0.15, level, 0.09, 0.05], draw) for draw, level in enumerate((0.1, 0.12, 0.14, 0.12))]
    measured = [UNTOUCHED, *(row for draw in draws for row in draw)]
    (_, line) = equal.lines(measured, -1)
    mean, error = line["at"][0.02]["score"]
    deviation = math.sqrt(sum((x - 0.12) ** 2 for x in (0.1, 0.12, 0.14, 0.12)) / 3)
    assert (mean, error) == (pytest.approx(0.12), pytest.approx(deviation / 2))
    text = equal.table(record.Result({}, {}, measured))
    assert "| lineas | 0.120 ± 0.008 | 6.0 ± 0.4 | 102.0 ± 0.0 |" in text


def test_a_row_is_measured_once(model: lineas.TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first missing row alone makes a method learn; rows that are there are read."""
    learned: list[tuple[str, int]] = []
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(equal.Contest, "_learned", lambda self, method, draw: learned.append((method, draw)))
    monkeypatch.setattr(
        equal.Contest, "_row", lambda self, method, draw, divergence, once: {"is": (once(), divergence)[1]}
    )

    class Concept:
        prompts = neutral = TARGET

    class Bench:
        name, concept, count, sentences = None, Concept, 2, 2

    contest = equal.Contest("toxicity", Bench, 4, 1)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        made = [record.get_or_make(part).made["is"] for part in contest.parts("caa", 1)]
        assert made == list(equal.DIVERGENCES)
    assert learned == [("caa", 1)]
    assert len(list((tmp_path / "equal" / "toxicity-SmolLM2-135M-Instruct").glob("caa-1-*.json"))) == 4
