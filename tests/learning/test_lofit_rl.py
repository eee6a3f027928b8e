"""LoFIT-RL: its gradient against the exact one, what it reaches, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import families
import pytest
import torch

import lineas
from lineas import LineasError, LoFITRL
from lineas.learning.lofit_rl import _until_end
from lineas.learning.method import Task
from lineas.learning.optimizers import DeviationAdam
from lineas.learning.trained_maps import TrainedMaps
from lineas.models.frozen import frozen
from lineas.steering.hooks import edited

PROMPTS = ["Tom", "The dog", "Once upon a time"]


def has_vowel(texts: Sequence[str]) -> list[float]:
    return [float(any(letter in text for letter in "aeiou")) for text in texts]


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_the_gradient_is_that_of_the_expected_reward_and_the_divergence(kl: float) -> None:
    """For two new tokens, or one that ends the text, the expectation can be written out and differentiated."""
    model = families.model("llama")
    network: Any = model.network
    sites = model.sites()
    encoded, _ = model.encode(["Tom lost his red"], 128)
    method = LoFITRL(has_vowel, kl=kl, samples=6000, max_new_tokens=2)
    trained = TrainedMaps(
        sites, Task(model, model.samples(PROMPTS), model.samples(PROMPTS), sites).source_activations()
    )
    with torch.no_grad():  # away from the start, where the divergence has no gradient
        for i, shift in enumerate(trained.shifts.values()):
            shift.copy_(0.5 * torch.randn(shift.shape, generator=torch.Generator().manual_seed(i)))
    ids = torch.tensor(encoded)
    vocabulary = network.config.vocab_size
    with frozen(model.network):
        with torch.no_grad(), edited(model.network, trained.edits):
            likely_end = int(model.network(ids).logits[0, -1].argmax())
        network.generation_config.eos_token_id = likely_end  # so that many samples end early
        prompts = encoded * method.samples
        with edited(model.network, trained.edits):
            made = model.continue_ids(prompts, 2, 1.0, 1.0, 1.0, 0, 1000)
        made = [_until_end(new, model) for new in made]
        assert 0.05 < sum(len(new) == 1 for new in made) / len(made) < 0.95
        unwanted = torch.tensor(has_vowel(model.tokenizer.batch_decode(made, skip_special_tokens=True)))
        method._backward(model, trained.edits, prompts, made, unwanted)
        estimated = torch.cat([p.grad.clone() for p in trained.parameters if p.grad is not None])
        for parameter in trained.parameters:
            parameter.grad = None

        whole = torch.cat([ids.repeat(vocabulary, 1), torch.arange(vocabulary).unsqueeze(1)], 1)  # each first token
        untouched = model.network(whole).logits[:, -2:].log_softmax(-1)
        with edited(model.network, trained.edits):
            steered = model.network(whole).logits[:, -2:].log_softmax(-1)
        divergence = (steered.exp() * (steered - untouched)).sum(-1)  # [first token, 2]
        first, second = steered[0, 0].exp(), steered[:, 1].exp()
        goes_on = (torch.arange(vocabulary) != likely_end).float()
        ends = 1 - torch.tensor(has_vowel(model.tokenizer.batch_decode([[i] for i in range(vocabulary)])))
        pairs = [[i, j] for i in range(vocabulary) for j in range(vocabulary)]
        rewards = 1 - torch.tensor(has_vowel(model.tokenizer.batch_decode(pairs, skip_special_tokens=True)))
        after = (second * rewards.view(vocabulary, vocabulary)).sum(-1)
        reward = (first * torch.where(goes_on == 1, after, ends)).sum()
        objective = reward - kl * (divergence[0, 0] + (first * goes_on * divergence[:, 1]).sum())
        (-objective).backward()
    exact = torch.cat([p.grad for p in trained.parameters if p.grad is not None])
    assert float(torch.cosine_similarity(estimated, exact, dim=0)) > 0.97
    assert float(estimated.norm() / exact.norm()) == pytest.approx(1, abs=0.15)


def test_what_the_classifier_calls_unwanted_becomes_rarer_and_the_weights_stay(stories: lineas.TextModel) -> None:
    before = {name: p.clone() for name, p in stories.network.named_parameters()}

    def about_her(texts: Sequence[str]) -> list[float]:
        counts = [sum(word in ("she", "her") for word in text.lower().split()) for text in texts]
        return [count / (1 + count) for count in counts]

    prompts = ["Lily was a girl.", "Once upon a time, Sue had a cat.", "Mia liked to play."]
    method = LoFITRL(about_her, steps=15, learning_rate=1.0, kl=0.0, prompts=None, samples=8, max_new_tokens=24)
    learned = lineas.learn(stories, prompts, prompts, method, seed=1, progress=False)
    assert all(torch.equal(before[name], p) for name, p in stories.network.named_parameters())
    shares = []
    for strength in (0.0, 1.0):
        with lineas.steer(stories, learned, strength=strength):
            texts = [t for s in range(8) for t in stories.generate(prompts, seed=s, top_p=1.0, repetition_penalty=1.0)]
        shares.append(sum(about_her(texts)) / len(texts))
    assert shares[0] > 0.4
    assert shares[1] < 0.6 * shares[0]
    facts = json.loads(json.dumps(learned.facts))
    assert facts["method"]["classifier"] == "about_her"
    assert len(facts["cost"]) == 15


def vowel_share(texts: Sequence[str]) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def test_a_leash_keeps_it_near_the_untouched_model(stories: lineas.TextModel) -> None:
    sizes = []
    for kl in (0.0, 20.0):
        method = LoFITRL(vowel_share, steps=6, learning_rate=0.5, kl=kl, prompts=None, samples=4, max_new_tokens=8)
        learned = lineas.learn(stories, PROMPTS, PROMPTS, method, progress=False)
        with torch.no_grad():
            ids = torch.tensor([stories.tokenizer(PROMPTS[2]).input_ids])
            plain = stories.network(ids).logits.log_softmax(-1)
            with lineas.steer(stories, learned):
                moved = stories.network(ids).logits.log_softmax(-1)
        sizes.append(float((moved.exp() * (moved - plain)).sum(-1).mean()))
    assert sizes[1] < 0.7 * sizes[0]


def test_wrong_settings_and_models_are_said(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match="needs a classifier"):
        LoFITRL("profanity")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="samples must be at least 2, not 1"):
        LoFITRL(has_vowel, samples=1)
    with pytest.raises(LineasError, match="kl must be 0 or more, not -1"):
        LoFITRL(has_vowel, kl=-1.0)

    class Other:
        network = stories.network

    with pytest.raises(LineasError, match="needs a text model"):
        LoFITRL(has_vowel).fit(Task(Other(), stories.samples(PROMPTS), stories.samples(PROMPTS), stories.sites()))  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:interrupted after 2 of 4 steps")
def test_an_interruption_keeps_the_maps_of_the_last_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, step, found = families.model("llama"), DeviationAdam.step, []
    for moved in (False, True):
        calls = 0

        def interrupted(optimizer: DeviationAdam, moved: bool = moved) -> object:
            nonlocal calls
            calls += 1
            if calls < 3 or moved:
                step(optimizer)
            if calls == 3:
                raise KeyboardInterrupt
            return ()

        monkeypatch.setattr(DeviationAdam, "step", interrupted)
        method = LoFITRL(has_vowel, steps=4, samples=2, prompts=2, max_new_tokens=2)
        learned = lineas.learn(model, PROMPTS, PROMPTS, method, progress=False)
        assert learned.facts["interrupted"] == {"done": 2, "of": 4}
        found.append(learned.digest())
    assert found[0] == found[1]
