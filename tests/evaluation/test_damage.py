"""Perplexity and divergence against transformers' own loss and torch's own divergence; what texts look like."""

from __future__ import annotations

import math
from typing import Any

import families
import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

import lineas
from lineas import LineasError
from lineas.evaluation.perplexity import damages, perplexities, perplexity
from lineas.evaluation.statistics import interval
from lineas.evaluation.variety import distinct, repetition

SENTENCES = [
    "Once upon a time there was a dog.",
    "Tom saw a bird.",
    "She was very happy and smiled at her mom all day.",
]


def test_perplexity_is_exp_of_the_models_own_loss_for_each_sentence(stories: lineas.TextModel) -> None:
    found = perplexities(stories, SENTENCES)
    for sentence, value in zip(SENTENCES, found):
        ids = stories.tokenizer(sentence, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = stories.network(input_ids=ids, labels=ids).loss
        assert value == pytest.approx(float(loss.exp()), rel=1e-4)
    assert perplexity(stories, SENTENCES) == pytest.approx(sum(found) / 3)


def test_perplexity_reads_at_most_the_given_number_of_tokens(stories: lineas.TextModel) -> None:
    ids = stories.tokenizer(SENTENCES[2], return_tensors="pt").input_ids[:, :6]
    with torch.no_grad():
        loss = stories.network(input_ids=ids, labels=ids).loss
    assert perplexity(stories, SENTENCES[2:], max_length=6) == pytest.approx(float(loss.exp()), rel=1e-4)


@pytest.mark.parametrize("bos", [True, False])
def test_a_prefix_stands_before_the_sentence_and_is_not_counted(bos: bool) -> None:
    model = families.model("llama", bos=bos)
    prefix = "Be nice:\n"
    found = perplexities(model, SENTENCES, prefix=prefix)
    for sentence, value in zip(SENTENCES, found):
        plain = model.tokenizer(sentence, add_special_tokens=False).input_ids
        before = model.tokenizer(prefix).input_ids
        ids = torch.tensor([[*before, *plain]])
        labels = ids.clone()
        labels[:, : len(before) + (0 if bos else 1)] = -100  # without <s> the first token is not counted either way
        with torch.no_grad():
            loss = model.network(input_ids=ids, labels=labels).loss
        assert value == pytest.approx(float(loss.exp()), rel=1e-4)


def test_divergence_is_torchs_own_and_zero_where_nothing_changes_beside_the_perplexity(
    stories: lineas.TextModel,
) -> None:
    learned = lineas.learn(stories, SENTENCES, ["No!", "NEVER, EVER!", "GO AWAY"], lineas.LinAcT(), progress=False)
    with lineas.steer(stories, learned) as live:
        found, apart = damages(stories, live, SENTENCES)
    with lineas.steer(stories, learned):
        assert found == pytest.approx(perplexities(stories, SENTENCES))
    for sentence, value in zip(SENTENCES, apart):
        ids = stories.tokenizer(sentence, return_tensors="pt").input_ids
        with torch.no_grad():
            plain = stories.network(ids).logits[0, :-1].log_softmax(-1)
            with lineas.steer(stories, learned):
                moved = stories.network(ids).logits[0, :-1].log_softmax(-1)
        expected = torch.nn.functional.kl_div(moved, plain, reduction="batchmean", log_target=True)
        assert value == pytest.approx(float(expected), rel=1e-3)
        assert value > 0.01
    with lineas.steer(stories, learned, strength=0.0) as live:
        found, apart = damages(stories, live, SENTENCES)
    assert (found, apart) == (perplexities(stories, SENTENCES), [0.0] * 3)


def test_sentences_of_one_token_are_left_out_and_only_such_ones_refused(stories: lineas.TextModel) -> None:
    model = families.model("llama", bos=False)
    assert len(perplexities(model, ["Rain", "A"])) == 1
    with pytest.raises(LineasError, match="at least one sentence of two tokens"):
        perplexities(model, ["A"])


def test_intervals_are_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    low, high = interval(values.tolist())
    reference = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=0).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.02)
    assert high == pytest.approx(reference.high, abs=0.02)


def test_variety_and_repetition() -> None:
    assert distinct(["a b c", "a b d"], 1) == pytest.approx(4 / 6)
    assert distinct(["a b c", "a b d"], 3) == 1
    assert distinct(["", "a"], 2) == 0
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 - 4 / 5)
    assert repetition([]) == 0


def test_the_perplexity_of_a_destroyed_model_is_no_number() -> None:
    model = families.model("llama")
    network: Any = model.network
    network.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(LineasError, match="the model is destroyed"):
        perplexity(model, SENTENCES)
