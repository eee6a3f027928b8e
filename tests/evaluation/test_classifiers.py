"""Classifiers: by name, as functions, fitted; and what is said where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from families import tokenizer
from safetensors.torch import load_file, save_file

from lineas import LineasError
from lineas.evaluation.classifiers import classifier, fitted
from lineas.prompts import read_prompts


def count_no(texts: list[str]) -> list[float]:
    """The classifier that MODULE:FUNCTION names in these tests."""
    return [min(1.0, text.count("no") / 2) for text in texts]


def too_few(texts: list[str]) -> list[float]:
    return [0.5]


def test_rude_texts_score_above_kind_ones() -> None:
    judge = classifier("profanity-check")
    scores = judge(["You are a stupid idiot.", "Thank you for the flowers.", ""])
    assert scores[0] > 0.5 > scores[1]
    assert scores[2] < 0.5
    assert judge([]) == []


def test_a_python_function_by_name_or_as_it_is() -> None:
    assert classifier(f"{__name__}:count_no")(["no", "yes", "no no no"]) == [0.5, 0.0, 1.0]
    assert classifier(count_no) is count_no  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="must return one probability"):
        classifier(f"{__name__}:too_few")(["a", "b"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-classification model as the hub would have it: random weights, two labels."""
    where = tmp_path_factory.mktemp("classifier")
    config = transformers.DistilBertConfig(
        vocab_size=256, dim=16, hidden_dim=16, n_layers=1, n_heads=2, num_labels=2,  # pyright: ignore[reportCallIssue]
        id2label={0: "neutral", 1: "toxic"}, label2id={"neutral": 0, "toxic": 1}, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(where)
    tokenizer().save_pretrained(where)
    return where


def test_a_text_classification_model_gives_the_probability_of_its_label(folder: Path) -> None:
    texts = ["The dog ran.", "A", "Rain on the roof of the house"]
    network = transformers.DistilBertForSequenceClassification.from_pretrained(folder)
    expected = []
    for text in texts:
        with torch.no_grad():
            expected.append(network(torch.tensor([tokenizer()(text).input_ids])).logits.softmax(-1)[0])
    toxic = classifier(str(folder))(texts)  # of two labels the one called toxic
    assert toxic == pytest.approx([float(p[1]) for p in expected], abs=1e-5)
    assert classifier(f"{folder}@neutral")(texts) == pytest.approx([float(p[0]) for p in expected], abs=1e-5)


def test_a_classifier_without_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "classifier"))
    weights = load_file(copied / "model.safetensors")
    save_file({name: w for name, w in weights.items() if name != "classifier.weight"}, copied / "model.safetensors")
    with pytest.raises(LineasError, match=r"lacks the weight classifier\.weight of its DistilBert"):
        classifier(str(copied))


def test_what_a_classifier_cannot_read_is_one_sentence(folder: Path) -> None:
    with pytest.raises(LineasError, match="is no UTF-8"):
        classifier(str(folder))(["caf\udce9"])


def test_labels_that_are_not_plain_are_listed(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "joy", "1": "anger"}, "label2id": {"joy": 0, "anger": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LineasError, match="@LABEL: it has joy, anger"):
        classifier(str(tmp_path))
    with pytest.raises(LineasError, match="@LABEL: it has neutral, toxic"):
        classifier(f"{folder}@rude")


@pytest.mark.parametrize(
    "name", ["s-nlp/roberta_toxicity_classifier", "nonsense", "no.such.module:function", "os:nothing"]
)
def test_a_classifier_that_cannot_be_had_is_said_in_one_sentence(name: str) -> None:
    with pytest.raises(LineasError, match="no classifier") as caught:
        classifier(name)
    assert name.split("@")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fitted_classifier_knows_its_style_on_texts_it_was_not_fitted_on() -> None:
    formal, plain = read_prompts("lineas:formal/target"), read_prompts("lineas:formal/source")
    judge, area = fitted(formal[:30], plain[:30])
    assert area > 0.9
    shows = [score >= 0.5 for score in judge([*formal[30:], *plain[30:]])]
    right = sum(shows[: len(formal) - 30]) + sum(not s for s in shows[len(formal) - 30 :])
    assert right > 0.8 * len(shows)
    assert judge([]) == []
    shuffled = [*formal[:15], *plain[:15]]
    with pytest.warns(UserWarning, match="hardly tells these texts from the others"):
        assert fitted(shuffled, [*formal[15:30], *plain[15:30]])[1] < 0.75  # nothing to tell apart
    with pytest.raises(LineasError, match=r"does not tell these texts from the others: .* is 0\.0"):
        fitted(formal, formal)
    with pytest.raises(LineasError, match="at least 5 texts a side, the other side has 2"):
        fitted(formal, plain[:2])


def test_a_classifier_is_loaded_anew_where_its_folder_holds_another(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "classifier"))
    before = classifier(str(copied))
    assert classifier(str(copied)) is before
    weights = load_file(copied / "model.safetensors")
    save_file(
        {name: -w if name == "classifier.weight" else w for name, w in weights.items()}, copied / "model.safetensors"
    )
    assert classifier(str(copied))(["The dog ran."]) != before(["The dog ran."])
