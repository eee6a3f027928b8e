"""Evaluations: every system by the same plan, kept in parts, no failure losing another measure; tables and plots."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import families
import pytest
import torch

import lineas
from lineas import LineasError
from lineas.evaluation import text_measures
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.perplexity import perplexity
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Row
from lineas.evaluation.variants import Prompted, Steered, Untouched
from lineas.reporting.plots import plot_effect_and_damage, plot_learned
from lineas.reporting.tables import markdown

NEUTRAL = ["Once upon a time there was a dog.", "Tom saw a bird.", "She was very happy and smiled at her mom all day."]
PROMPTS = ["Tom", "Once upon a time", "The cat was"]


def length(texts: Sequence[str]) -> list[float]:
    return [min(1.0, len(text) / 100) for text in texts]


def broken(texts: Sequence[str]) -> list[float]:
    raise RuntimeError("the classifier's disk is full\nand more")


PLAN = Plan(PROMPTS, NEUTRAL, {"long": length}, seeds=(0, 1))


@pytest.fixture(scope="module")
def harsh(stories: lineas.TextModel) -> lineas.Intervention:
    width = families.width(stories)
    change = lineas.AffineMap(torch.full((width,), 0.5), torch.full((width,), 0.3))
    return lineas.Intervention({site.name: change for site in stories.sites()})


def test_rows_are_what_each_measure_gives_on_the_changed_model(
    stories: lineas.TextModel, harsh: lineas.Intervention
) -> None:
    systems = [Untouched(), Steered("harsh", harsh, 1.0), Prompted("Be brief:")]
    found = evaluate(stories, systems, PLAN)
    plain, steered, prompted = found.rows
    assert plain.values["perplexity"] == pytest.approx(perplexity(stories, NEUTRAL))
    assert plain.values["kl"] == 0
    by_seed = [length(stories.generate(PROMPTS, seed=seed)) for seed in (0, 1)]
    assert plain.by_seed["long_score"] == pytest.approx([mean(scores) for scores in by_seed])
    assert plain.values["long"] == mean(score >= 0.5 for scores in by_seed for score in scores)
    with lineas.steer(stories, harsh):
        assert steered.values["perplexity"] == pytest.approx(perplexity(stories, NEUTRAL))
        assert found.continuations[1] == [stories.generate(PROMPTS, seed=seed) for seed in (0, 1)]
    assert steered.values["kl"] > 0.1
    assert found.continuations[2][0] == stories.generate([f"Be brief:\n{p}" for p in PROMPTS], seed=0)
    assert prompted.values["perplexity"] == pytest.approx(perplexity(stories, NEUTRAL, prefix="Be brief:\n"))
    low, high = steered.intervals["perplexity"]
    assert low < steered.values["perplexity"] < high
    assert all(not row.errors for row in found.rows)
    assert json.loads(json.dumps(found.as_json()))["seeds"] == [0, 1]


def test_strength_zero_is_the_untouched_model_of_every_system(
    stories: lineas.TextModel, harsh: lineas.Intervention
) -> None:
    plain, zero = evaluate(stories, [Untouched(), Steered("harsh", harsh, 0.0)], PLAN).rows
    assert zero == replace(plain, system="harsh")
    assert zero.identity == {"system": "untouched"}


def test_a_measure_that_fails_is_said_and_loses_no_other(stories: lineas.TextModel) -> None:
    plan = replace(PLAN, classifiers={"toxic": broken, "long": length}, tasks=["no_such_task"])
    (row,) = evaluate(stories, [Untouched()], plan).rows
    assert row.errors.keys() == {"toxic", "no_such_task"}
    assert row.errors["toxic"] == "RuntimeError: the classifier's disk is full"
    assert "no_such_task" in row.errors["no_such_task"]
    assert {"long", "long_score", "perplexity", "kl", "distinct_2", "repetition"} <= row.values.keys()
    table = markdown(evaluate(stories, [Untouched()], plan))
    assert "Not measured: untouched at 0, toxic: RuntimeError: the classifier's disk is full" in table


def test_a_generation_that_fails_leaves_the_damage_and_a_destroyed_model_is_said(
    stories: lineas.TextModel, harsh: lineas.Intervention, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(lineas.TextModel, "generate", lambda *_, **__: broken([]))
        (row,) = evaluate(stories, [Untouched()], PLAN).rows
    assert row.errors == {"continuations": "RuntimeError: the classifier's disk is full"}
    assert row.values["perplexity"] > 1
    with monkeypatch.context() as patch:
        patch.setattr(text_measures, "perplexities", lambda *_, **__: broken([]))
        (row,) = evaluate(stories, [Untouched()], PLAN).rows
    assert row.errors == dict.fromkeys(("perplexity", "kl"), "RuntimeError: the classifier's disk is full")
    assert row.values["distinct_2"] > 0
    width = families.width(stories)
    huge = lineas.AffineMap(torch.ones(width), torch.full((width,), 3e38))
    destroyed = Steered("huge", lineas.Intervention(dict.fromkeys(harsh.maps, huge)))
    (row,) = evaluate(stories, [destroyed], replace(PLAN, prompts=[], classifiers={})).rows
    assert row.errors["perplexity"] == "it is not finite on 3 of 3 sentences, so the model is destroyed."
    assert "perplexity" not in row.values


def test_a_model_trained_further_does_not_take_the_parts_of_the_earlier_one(
    stories: lineas.TextModel, tmp_path: Path
) -> None:
    before = evaluate(stories, [Untouched()], PLAN, tmp_path).rows[0]
    network: Any = copy.deepcopy(stories.network)
    with torch.no_grad():
        network.model.layers[0].mlp.down_proj.weight.mul_(1.5)  # the norms, and so the fingerprint, stay
    after = evaluate(lineas.TextModel(network, stories.tokenizer, stories.name), [Untouched()], PLAN, tmp_path).rows[0]
    assert after.values["perplexity"] != before.values["perplexity"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    stories: lineas.TextModel, harsh: lineas.Intervention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = [Untouched(), Steered("harsh", harsh, 1.0)]
    whole = evaluate(stories, systems, PLAN)
    calls: list[int] = []
    generate = lineas.TextModel.generate

    def at_most_three(model, *arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return generate(model, *arguments, **options)

    monkeypatch.setattr(lineas.TextModel, "generate", at_most_three)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stories, systems, PLAN, tmp_path)
    done: list[int] = []
    again = evaluate(stories, systems, PLAN, tmp_path, progress=done.append)
    assert calls == [0, 1, 0, 1, 1]  # the fourth was cut off, and it alone runs again
    assert again.rows == whole.rows
    assert again.continuations == whole.continuations
    assert sum(done) == 2 * 2 * len(PROMPTS)  # what was read from the folder counts too
    cut_off = next(tmp_path.glob("continuations-*.json"))
    cut_off.write_text('["half a')  # as a power failure leaves a file
    assert evaluate(stories, systems, PLAN, tmp_path).rows == whole.rows


def test_other_prompts_sampling_models_and_interventions_do_not_take_each_others_parts(
    stories: lineas.TextModel, harsh: lineas.Intervention, tmp_path: Path
) -> None:
    def texts(system: Steered, plan: Plan) -> list[list[str]]:
        return evaluate(stories, [system], plan, tmp_path).continuations[0]

    first = texts(Steered("a", harsh), PLAN)
    assert texts(Steered("a", harsh.at(0.5)), PLAN) != first
    assert texts(Steered("a", harsh), replace(PLAN, prompts=PROMPTS[::-1])) != first
    assert texts(Steered("a", harsh), replace(PLAN, sampling={"max_new_tokens": 3})) != first
    assert texts(Steered("renamed", harsh), PLAN) == first


def test_empty_continuations_are_counted_and_judged(stories: lineas.TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineas.TextModel, "generate", lambda *_, **__: ["", "  ", "a word"])
    (row,) = evaluate(stories, [Untouched()], Plan(PROMPTS, classifiers={"long": length})).rows
    assert row.values["empty"] == pytest.approx(2 / 3)
    assert row.values["long_score"] == pytest.approx(mean(length(["", "  ", "a word"])))
    assert not row.errors


def test_plots_show_every_system_and_refuse_what_is_not_there(tmp_path: Path, harsh: lineas.Intervention) -> None:
    rows = [
        Row(name, strength, {"toxic": share, "perplexity": damage})
        for name, strength, share, damage in [
            ("untouched", 0.0, 0.05, 100.0),
            ("calm", 0.5, 0.03, 103.0),
            ("calm", 1.0, 0.01, 2e9),
            ("prompt", 1.0, 0.04, 99.0),
        ]
    ]
    picture = plot_effect_and_damage(rows, tmp_path / "plot.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LineasError, match="no row has both concept and perplexity"):
        plot_effect_and_damage(rows, tmp_path / "none.png", effect="concept")
    learned = plot_learned(harsh.with_facts(cost=[3.0, 2.0, 1.0]), rows[:3], tmp_path / "learned.png")
    assert learned.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_measure_is_said(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match="at least one seed"):
        Plan(PROMPTS, seeds=())
    with pytest.raises(LineasError, match="give prompts to continue"):
        Plan([], classifiers={"long": length})
    with pytest.raises(LineasError, match="at least one system"):
        evaluate(stories, [], PLAN)
