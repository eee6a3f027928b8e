"""Perplexity against transformers' own loss, and effect and damage of an intervention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lineas
from lineas import LineasError
from lineas.evaluation.perplexity import perplexities, perplexity
from lineas.evaluation.report import measure, plot
from lineas.evaluation.toxicity import toxicity_scores

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


def test_rude_texts_score_above_kind_ones() -> None:
    scores = toxicity_scores(["You are a stupid idiot.", "Thank you for the flowers.", ""])
    assert scores[0] > 0.5 > scores[1]
    assert scores[2] < 0.5
    assert toxicity_scores([]) == []


def test_measure_gives_the_untouched_model_at_zero_and_something_else_at_one(
    stories: lineas.TextModel, tmp_path: Path
) -> None:
    width = stories.network.config.hidden_size
    change = lineas.AffineMap(torch.full((width,), 0.5), torch.full((width,), 0.3))
    harsh = lineas.Intervention({site.name: change for site in stories.sites()})
    rows, texts = measure(stories, harsh, ["Tom", "Once"], SENTENCES, strengths=(0.0, 1.0), seeds=(0, 1))
    assert rows[0].perplexity == pytest.approx(perplexity(stories, SENTENCES))
    assert texts[0.0] == stories.generate(["Tom", "Once"], seed=0)
    assert rows[1].perplexity > rows[0].perplexity
    assert len(rows[1].toxic_by_seed) == 2
    picture = plot(harsh.with_facts(cost=[3.0, 2.0, 1.0]), rows, tmp_path / "plot.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LineasError, match="at least one strength"):
        measure(stories, harsh, ["Tom"], SENTENCES, strengths=())
