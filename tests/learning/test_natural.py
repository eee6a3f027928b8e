"""Learning by the natural gradient: the budget is what was measured, independently, and bad neutral text is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import families
import pytest
import torch

import lineas
from lineas import LinEAS, LineasError
from lineas.learning.optimizers import NaturalGradient

SOURCE = ["Tom was sad and he cried the whole day.", "The dog barked at Lily, and she ran.", "He lost it."] * 2
TARGET = ["Mom smiled at Tom.", "They were happy.", "The sun was warm and they played."]
NEUTRAL = ["Lily saw a red ball in the park.", "The cat sat on the mat.", "One day, Ben went to the big lake with Dad."]
NATURAL, RELATIVE = LinEAS(optimizer="natural"), LinEAS(optimizer="relative", steps=1)


def learn(model: lineas.TextModel, method: LinEAS = NATURAL, **options: object) -> lineas.Intervention:
    """Learn from the sentences above."""
    return lineas.learn(model, SOURCE, TARGET, method, progress=False, **{"neutral": NEUTRAL, **options})  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def divergence(model: lineas.TextModel, learned: lineas.Intervention, strength: float = 1.0) -> float:
    """Return the mean over the neutral texts of the mean over their tokens of KL(untouched || steered)."""
    means = []
    for text in NEUTRAL:
        ids = torch.tensor([model.token_ids([text])[0]])
        before = model.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        with lineas.steer(model, learned, strength):
            after = model.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        means.append((before.exp() * (before - after)).sum(-1).mean())
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("budget", [0.003, 0.03])
def test_the_budget_is_spent_at_strength_one(stories: lineas.TextModel, budget: float) -> None:
    learned = learn(stories, LinEAS(optimizer="natural", divergence=budget))
    assert learned.facts["divergence"] == pytest.approx(budget, rel=0.021)
    assert divergence(stories, learned) == pytest.approx(learned.facts["divergence"], rel=1e-3)
    assert divergence(stories, learned, 0.5) < 0.5 * budget
    assert len(learned.facts["cost"]) == learned.facts["method"]["steps"] == 5
    assert learned.facts["cost_after"] < learned.facts["cost"][0]
    assert learned.facts["data"]["neutral"]["count"] == len(NEUTRAL)


def test_a_budget_that_leads_far_beyond_the_target_is_spent_with_a_warning(
    stories: lineas.TextModel,
) -> None:
    with pytest.warns(UserWarning, match=r"a divergence of 0\.3 the source is farther from the target than before"):
        learned = learn(stories, LinEAS(optimizer="natural", divergence=0.3))
    assert divergence(stories, learned) == pytest.approx(0.3, rel=0.03)
    assert learned.facts["cost_after"] > learned.facts["cost"][0]
    small = learn(stories, LinEAS(optimizer="natural", divergence=0.003))
    for name, map_ in learned.maps.items():  # two budgets differ by a factor alone
        factor = float(map_.shift.norm() / small.maps[name].shift.norm())
        torch.testing.assert_close(map_.shift, factor * small.maps[name].shift, rtol=1e-3, atol=1e-5)


def surprise(model: lineas.TextModel, learned: lineas.Intervention | None = None) -> float:
    """Return the mean over the neutral texts of the loss that transformers computes."""
    losses = []
    for text in NEUTRAL:
        ids = torch.tensor([model.token_ids([text])[0]])
        with torch.no_grad(), nullcontext() if learned is None else lineas.steer(model, learned):
            losses.append(float(model.network(input_ids=ids, labels=ids).loss))
    return sum(losses) / len(losses)


def test_the_perplexity_of_the_neutral_text_does_not_rise_to_first_order(
    stories: lineas.TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toward text without sense it would, by far more than the divergence that is spent."""
    small, nonsense = LinEAS(optimizer="natural", divergence=3e-4), ["the the the", "of of of", "a a a a"]

    def rise() -> float:
        learned = lineas.learn(stories, SOURCE, nonsense, small, neutral=NEUTRAL, progress=False)
        return surprise(stories, learned) - surprise(stories)

    assert rise() < 3e-4
    monkeypatch.setattr(NaturalGradient, "_level", lambda self, gradients: gradients)
    assert rise() > 3e-3


def test_the_cost_after_learning_is_that_of_the_maps(stories: lineas.TextModel) -> None:
    learned = learn(stories)
    again = lineas.learn(stories, SOURCE, TARGET, RELATIVE, list(learned.maps), start=learned, progress=False)
    assert again.facts["cost"][0] == pytest.approx(learned.facts["cost_after"], rel=1e-4)


def test_the_same_seed_learns_the_same_and_another_seed_other_maps(stories: lineas.TextModel) -> None:
    one, same, other = (learn(stories, seed=seed) for seed in (1, 1, 2))
    for name, map_ in one.maps.items():
        assert torch.equal(map_.shift, same.maps[name].shift)
    assert any(not torch.equal(map_.shift, other.maps[name].shift) for name, map_ in one.maps.items())


def test_little_memory_learns_the_same_maps(stories: lineas.TextModel) -> None:
    much, little = (learn(stories, memory=memory) for memory in ("2GiB", "66MiB"))
    for name, map_ in much.maps.items():
        largest = float(map_.shift.abs().max())
        torch.testing.assert_close(little.maps[name].shift, map_.shift, atol=0.02 * largest, rtol=0)


def test_a_penalty_leaves_few_neurons_and_the_budget_is_spent_on_them(stories: lineas.TextModel) -> None:
    few = LinEAS(optimizer="natural", divergence=0.003, gamma=0.6, lambda_g=0.0)
    dense, sparse, refitted = (learn(stories, method) for method in (NATURAL, few, replace(few, refit=True)))
    assert 0 < refitted.support() <= sparse.support() < 0.5 < dense.support()
    assert divergence(stories, sparse) == pytest.approx(0.003, rel=0.03)
    assert divergence(stories, refitted) == pytest.approx(0.003, rel=0.03)


def test_a_penalty_that_leaves_nothing_spends_nothing(stories: lineas.TextModel) -> None:
    with pytest.warns(UserWarning, match=r"the divergence reached 0 of 0\.02 nats in 5 steps"):
        nothing = learn(stories, LinEAS(optimizer="natural", gamma=1e3))
    assert nothing.support() == 0
    assert nothing.facts["divergence"] == 0


def test_small_batches_and_other_interventions_below_are_possible(stories: lineas.TextModel) -> None:
    """The untouched model of the divergence is the one with the intervention that is in place."""
    learn(stories, LinEAS(optimizer="natural", batch_size=3))
    first = learn(stories)
    second = learn(stories, on=first)
    both = first.then(second)
    with lineas.steer(stories, first):
        pass
    assert 0.015 < second.facts["divergence"] < 0.04
    assert divergence(stories, both) > divergence(stories, first)


def test_what_folds_alone_spends_the_budget_too(stories: lineas.TextModel) -> None:
    learned = learn(stories, LinEAS(optimizer="natural", foldable=True))
    assert divergence(stories, learned) == pytest.approx(0.02, rel=0.03)
    lineas.fold(stories, learned)


@pytest.mark.parametrize(
    ("neutral", "sentence"),
    [
        ([], "give at least one"),
        ("a text", "a list of"),
        (["Lily saw a ball.", ""], "the neutral prompt '' has one token, so there is none to predict"),
        ([3], "neutral prompts"),
    ],
)
def test_bad_neutral_text_is_refused(stories: lineas.TextModel, neutral: object, sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        learn(stories, neutral=neutral)


def test_neutral_text_of_one_token_or_for_another_optimizer_is_refused(stories: lineas.TextModel) -> None:
    model = families.model("llama", bos=False)
    (word,) = model.tokenizer.batch_decode([model.token_ids(families.PROMPTS)[0][:1]])
    with pytest.raises(LineasError, match="has one token, so there is none to predict"):
        lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, NATURAL, neutral=[word])
    with pytest.raises(LineasError, match="serve the optimizer 'natural' alone"):
        learn(stories, LinEAS(optimizer="relative"))
    with pytest.raises(LineasError, match="serve the optimizer 'natural' alone"):
        lineas.learn(stories, SOURCE, TARGET, lineas.MeanAcT(), neutral=NEUTRAL)


def test_neutral_text_in_a_script_that_the_model_does_not_read_is_refused() -> None:
    model, neutral = families.model("llama"), ["\u0905\u0906\u0907 \u0908\u0909", "\u4f60\u597d"]
    with pytest.raises(
        LineasError, match=r"7 of 10 tokens of the neutral prompts are unknown to tiny-llama; give text"
    ):
        lineas.learn(model, families.PROMPTS, families.OTHER_PROMPTS, NATURAL, neutral=neutral)


@pytest.mark.filterwarnings("ignore:.* of 6 source prompts were cut", "ignore:at a divergence of")
def test_long_neutral_text_is_cut_with_a_warning(stories: lineas.TextModel) -> None:
    with pytest.warns(UserWarning, match="1 of 2 neutral prompts were cut at 12 tokens"):
        learn(stories, neutral=[NEUTRAL[1], " ".join(NEUTRAL)], max_length=12)


@pytest.mark.filterwarnings("ignore:prompts of .* are padded")
def test_a_network_without_predictions_is_refused_with_the_way_out(stories: lineas.TextModel) -> None:
    headless = lineas.TextModel(stories.network.model, stories.tokenizer)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with pytest.raises(LineasError, match=r"predicts no tokens .*\(--optimizer relative\)"):
        learn(headless)
    lineas.learn(headless, SOURCE, TARGET, LinEAS(optimizer="relative", steps=1), progress=False)
