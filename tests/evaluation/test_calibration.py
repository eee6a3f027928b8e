"""Calibration: the strength that bisection finds, what goals mean, and what is written into the artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from console import LEARN, check_refused, run
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

import lineas
from lineas import LineasError
from lineas.evaluation import text_measures
from lineas.evaluation.goals import Goal
from lineas.evaluation.statistics import interval, ratio_interval
from lineas.evaluation.strength_search import find_strength, growing


def model(strength: float) -> dict[str, float]:
    """Toxicity falls from 0.4 to 0.1, perplexity rises from 20 to 24, both along the strength."""
    return {"toxic": 0.4 - 0.3 * strength, "perplexity": 20 + 4 * strength**2, "img_score": 100 - 20 * strength}


@pytest.mark.parametrize(
    ("effect", "damage", "strength", "reached"),
    [
        ("toxic-50%", None, 2 / 3, True),
        ("toxic<=0.25", None, 0.5, True),
        ("toxic<=25%", None, 0.5, True),
        ("toxic<=0.4", None, 0.0, True),  # it is so already
        (None, "ppl+5%", 0.5, True),
        (None, "perplexity<=21", 0.5, True),
        (None, "likeness-10%", 0.5, True),
        (None, "likeness>=90", 0.5, True),
        (None, "likeness>=90%", 0.5, True),  # which is a percentage as it is
        (None, "likeness-0%", 0.0, True),
        (None, "ppl+50%", 1.0, True),
        ("toxic-25%", "ppl+5%", 1 / 3, True),  # the smallest that does, not the largest that may
        ("toxic-50%", "ppl+5%", 0.5, False),  # the damage comes first
        ("toxic-90%", "ppl+5%", 0.5, False),
    ],
)
def test_the_strength_is_where_the_goal_begins_or_the_damage_ends(
    effect: str | None, damage: str | None, strength: float, reached: bool
) -> None:
    calls: list[float] = []
    goals = (effect and Goal.effect(effect), damage and Goal.damage(damage))
    found = find_strength(lambda s: calls.append(s) or model(s), goals[0] or None, goals[1] or None, tolerance=0.01)
    assert found.strength == pytest.approx(strength, abs=0.01)
    assert found.reached is reached
    each = 7 + 2  # halves down to a hundredth, and two that agree
    assert len(calls) == len(set(calls)) <= 2 + 2 * each
    assert [row["strength"] for row in found.curve] == sorted(calls)
    assert {"strength": found.strength, **model(found.strength)} in found.curve
    for goal in (goals[0] if reached else None, goals[1]):
        assert not goal or goal.met(model(found.strength), model(0))


@pytest.mark.parametrize(
    ("goal", "sentence"),
    [
        ("toxic-150%", "at most"),
        ("kl+5%", "whose kl is 0 here; give a value"),
        ("toxic-50", "is no goal"),
        ("kl<=1e", "is no goal"),
    ],
)
def test_a_goal_that_means_nothing_is_refused(goal: str, sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        find_strength(lambda s: {"toxic": 0.4 - 0.3 * s, "kl": s}, damage=Goal.damage(goal))


@pytest.mark.parametrize(("text", "bound"), [("kl<=1e-3", 1e-3), ("kl<=.1", 0.1), ("kl <= 2.", 2.0)])
def test_numbers_are_read_as_they_are_written(text: str, bound: float) -> None:
    assert Goal.damage(text).bound == bound


@pytest.mark.parametrize("text", ["ppl+1e400%", "ppl<=1e400", "toxic>=1e999%"])
def test_a_bound_that_bounds_nothing_is_refused(text: str) -> None:
    with pytest.raises(LineasError, match="is no finite number, so it bounds nothing"):
        Goal.damage(text)


@pytest.mark.parametrize("text", ["kl<=\u0663", "kl<=\uff11", "ppl+1_0%", 5, None])
def test_what_is_no_number_as_it_is_written_is_no_goal(text: Any) -> None:
    with pytest.raises(LineasError, match=r"is no goal|a goal is a text"):
        Goal.damage(text)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"effect": "toxic-50%"}, "the effect is a Goal"),
        ({"damage": Goal.damage("ppl+5%"), "largest": "1"}, "largest must be a finite number, not '1'"),
        ({"damage": Goal.damage("ppl+5%"), "tolerance": float("nan")}, "tolerance must be a finite number, not nan"),
        ({"damage": Goal.damage("ppl+5%"), "largest": None}, "largest must be a finite number, not None"),
    ],
)
def test_wrong_types_are_said(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        find_strength(model, **arguments)


def test_a_destroyed_model_is_said_in_one_sentence(
    learned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def destroyed(model: Any, change: Any, sentences: list[str], *_: Any) -> tuple[list[float], list[float]]:
        return [float("nan")] * len(sentences), [float("nan")] * len(sentences)

    monkeypatch.setattr(text_measures, "damages", destroyed)
    sentence = "2 of 2 sentences, so the model is destroyed; a smaller --largest (largest=...) may do."
    check_refused(capsys, learned, sentence, *CALIBRATE)


def test_a_tolerance_finer_than_numbers_ends() -> None:
    found = find_strength(lambda s: {"kl": s}, damage=Goal.damage("kl<=0.3"), tolerance=1e-300)
    assert found.strength == pytest.approx(0.3)


def test_one_lucky_measurement_is_no_strength() -> None:
    """Toxicity is measured too low at half the strength: bisection alone would end there, the curve knows better."""

    def noisy(strength: float) -> dict[str, float]:
        return {"toxic": 0.15 if strength == 0.5 else 0.4 - 0.3 * strength}

    found = find_strength(noisy, Goal.effect("toxic-50%"), tolerance=0.01)
    assert found.strength == pytest.approx(2 / 3, abs=0.02)
    assert noisy(found.strength)["toxic"] <= 0.2
    assert found.fitted["toxic"] <= 0.2


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_the_fitted_curve_is_the_isotonic_regression(values: list[float]) -> None:
    assert growing(values) == pytest.approx(isotonic_regression(values).tolist(), abs=1e-9)


def test_the_interval_of_a_ratio_compares_prompt_by_prompt() -> None:
    """Perplexities of sentences differ a hundredfold, their change by a factor is nearly the same for all."""
    before = [float(10 + 37 * i % 900) for i in range(50)]
    after = [value * (1.05 + 0.01 * (i % 2)) for i, value in enumerate(before)]
    low, high = ratio_interval(after, before)
    assert 1.05 < low < 1.055 < high < 1.06
    spread = interval(after)
    assert spread[1] / spread[0] > 1.2  # which says nothing about a change by 5 %
    assert ratio_interval([1.0, 1.0], [0.0, 0.0]) == (0.0, float("inf"))


def test_an_effect_out_of_reach_is_said_with_what_there_is() -> None:
    sentence = r"'toxic-90%' is not reached: at strength 1 toxic is 10\.0 %, untouched 40\.0 %"
    with pytest.raises(LineasError, match=sentence):
        find_strength(model, Goal.effect("toxic-90%"))
    found = find_strength(model, Goal.effect("toxic<=0.05"), largest=1.5)
    assert found.strength == pytest.approx(7 / 6, abs=0.02)


@pytest.mark.parametrize("text", ["", "toxic", "toxic=3", "-50%", "toxic-50", "toxic<0.1"])
def test_what_is_no_goal_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(LineasError, match="is no goal; write NAME-50%"):
        Goal.effect(text)


def test_a_damage_that_the_untouched_model_has_already_is_refused() -> None:
    with pytest.raises(LineasError, match="'ppl<=10' does not hold for the untouched model: its perplexity is 20"):
        find_strength(model, damage=Goal.damage("ppl<=10"))


def test_goals_need_their_measure() -> None:
    with pytest.raises(LineasError, match="is about mmlu, but the measures here are toxic, perplexity, img_score"):
        find_strength(model, damage=Goal.damage("mmlu-1%"))
    with pytest.raises(LineasError, match="an effect to reach, or a damage not to exceed"):
        find_strength(model)


CALIBRATE = (
    "calibrate", "--intervention", "calm", "--max-damage", "kl<=0.02", "--neutral", "held-out.txt",
    "--dtype", "float32",
)  # fmt: skip


@pytest.fixture
def learned(desk: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (desk / "held-out.txt").write_text("The cat sat on the mat and slept.\nThey went to the park to play.\n")
    run(capsys, *LEARN, "--dtype", "float32", "--optimizer", "relative", "--steps", "20")
    return desk


def test_a_measure_that_fails_is_told_only_where_a_goal_needs_it(
    learned: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(texts: list[str]) -> list[float]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("lineas.evaluation.plan.classifier", lambda name: failing)
    code, _, err = run(capsys, *CALIBRATE, "--prompts", "held-out.txt")
    assert code == 0, err
    goal = ("--target-effect", "toxic-50%", "--prompts", "held-out.txt")
    sentence = "toxic could not be measured at strength 0: RuntimeError: out of memory."
    check_refused(capsys, learned, sentence, *CALIBRATE, *goal)


def test_the_strength_is_written_into_the_artifact_and_taken_from_there(
    learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, *CALIBRATE, "--json", "told.json")
    assert code == 0
    strength = json.loads((learned / "told.json").read_text())["strength"]
    assert 0 < strength < 1
    assert f"calibrated: strength {strength:.3g}" in out
    calm = lineas.Intervention.load("calm")
    assert calm.calibrated_strength == strength
    within = [row["kl"] <= 0.02 for row in calm.facts["measurements"] if row["strength"] <= strength]
    assert all(within)
    assert any(row["kl"] > 0.02 for row in calm.facts["measurements"] if row["strength"] <= strength + 0.021)
    card = (learned / "calm" / "README.md").read_text()
    assert f"Calibrated strength: **{strength:.3g}** (damage kl\\<=0.02)" in card
    assert "| strength |" in card

    stories = lineas.load("model", dtype="float32")
    ids = torch.tensor([[1, 403, 407]])
    with lineas.steer(stories, calm, "calibrated") as live, torch.no_grad():
        assert live.strength == strength
        steered = stories.network(ids).logits
    with lineas.steer(stories, calm, strength), torch.no_grad():
        assert torch.equal(stories.network(ids).logits, steered)
    arguments = ("generate", "model", "--intervention", "calm", "--prompt", "Tom was", "--json", "-")
    _, by_name, _ = run(capsys, *arguments, "--strength", "calibrated")
    assert list(json.loads(by_name)["continuations"][0]["by_strength"]) == [f"{strength:g}"]


def test_what_it_learned_from_is_no_measure(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*CALIBRATE]
    arguments[arguments.index("held-out.txt")] = "target.txt"
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert "--neutral are the target it was learned from" in err


def test_an_uncalibrated_one_says_so(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "this intervention has no calibrated strength; lineas calibrate finds one"
    with pytest.raises(LineasError, match=sentence):
        lineas.steer(lineas.load("model"), lineas.Intervention.load("calm"), "calibrated")
    generate = ("generate", "model", "--intervention", "calm", "--prompt", "Tom")
    check_refused(capsys, learned, sentence, *generate, "--strength", "calibrated")
    check_refused(capsys, learned, "a number or 'calibrated', not 'strong'", *generate, "--strength", "strong")
    run(capsys, *CALIBRATE)
    both = lineas.Intervention.load("calm").then(lineas.Intervention.load("calm"))
    with pytest.raises(LineasError, match=sentence):
        _ = both.calibrated_strength


WRONG = [
    (("--limit", "0"), "--limit must be at least 1, not 0."),
    (("--max-damage", "ppl"), "is no goal"),
    (("--target-effect", "toxic-50%"), "is about toxic"),
    (("--largest", "0.01"), "the precision is above 0 and below the largest strength"),
    (("--out", "model"), "exists already"),
    (("--shows", "sun"), "--neutral is about texts; leave it out, or leave out --shows"),
]


@pytest.mark.parametrize(("more", "sentence"), WRONG, ids=[more[0] for more, _ in WRONG])
def test_mistakes_are_one_sentence(
    learned: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], sentence: str
) -> None:
    check_refused(capsys, learned, sentence, *CALIBRATE, *more)


def test_nothing_to_measure_and_no_goal(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(
        capsys,
        learned,
        "there is nothing to measure on",
        "calibrate",
        "--intervention",
        "calm",
        "--max-damage",
        "ppl+5%",
    )
    check_refused(
        capsys, learned, "calibrating needs a goal", "calibrate", "--intervention", "calm", "--neutral", "held-out.txt"
    )
    check_refused(
        capsys,
        learned,
        "not a folder here",
        "calibrate",
        "--intervention",
        "polite",
        "--max-damage",
        "ppl+5%",
        "--neutral",
        "source.txt",
    )
