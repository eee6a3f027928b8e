"""Classifiers of texts, given by name, as a function, or fitted on two sets of texts."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lineas.checks import as_texts
from lineas.errors import LineasError, needing, reading
from lineas.evaluation.result_cache import content_of
from lineas.measures import measure
from lineas.models.loader_report import load_weights

Classifier = Callable[[Sequence[str]], list[float]]
"""A function from texts to the probability that each shows the concept; 0.5 or more counts as yes."""

PROFANITY = "profanity-check"
CONCEPT_LABELS = ("toxic", "toxicity", "positive", "label_1", "1")
"""Labels that show the concept if a classifier has several labels and none is named."""
BATCH = 32
CHANCE, WEAK = 0.4, 0.6
"""Areas under the ROC curve below which a classifier is refused (CHANCE) or warned about (WEAK)."""


def classifier(name: str | Classifier) -> Classifier:
    """Return the classifier of a name.

    Args:
        name: "profanity-check" (alt-profanity-check, a linear model over words, which works offline),
            "MODULE:FUNCTION" for a Python function from a list of texts to probabilities, or hub id or folder of a
            text-classification model, with "@LABEL" if several labels could be meant, such as
            "s-nlp/roberta_toxicity_classifier@toxic". A function is returned as it is.

    Raises:
        LineasError: when there is no such classifier, it cannot be loaded, or several labels could be meant.

    >>> mild, rude = classifier("profanity-check")(["What a lovely garden.", "You are an idiot, shut up."])
    >>> mild < 0.5 < rude
    True
    """
    if not isinstance(name, str):
        return name
    if name == PROFANITY:
        return _profanity()
    module, colon, function = name.partition(":")
    if colon and not Path(name).exists():
        return _function(module, function)
    return _pipeline(*_model_and_label(name), content_of(name))


def by_column(names: Sequence[str]) -> dict[str, str]:
    """Return the names of classifiers by the column of results that each fills.

    The column of profanity-check is "toxic". The column of a model is its label if one is named, else its own name. A
    name may have COLUMN= before it; "none" alone stands for no classifier.

    >>> by_column(["profanity-check", "judges:is_polite", "me/model@Formal", "kind=me/kindness"])
    {'toxic': 'profanity-check', 'is_polite': 'judges:is_polite', 'formal': 'me/model@Formal', 'kind': 'me/kindness'}
    """
    if list(names) == ["none"]:
        return {}
    classifiers: dict[str, str] = {}
    for one in names:
        column, equals, name = one.partition("=")
        if not equals or not re.fullmatch(r"\w+", column) or Path(one).exists():
            column, name = _column(one), one
        if name == "none":
            raise LineasError("--classifier none stands alone; leave it out, or leave out the others.")
        if not column or column in classifiers:
            raise LineasError(f"two classifiers would fill the column '{column}'; write COLUMN=NAME for one of them.")
        if measure(column).role != "effect" or column.endswith("_score"):
            raise LineasError(f"a classifier cannot fill the column '{column}', which is another measure's.")
        classifiers[column] = name
    return classifiers


def _column(name: str) -> str:
    if name == PROFANITY:
        return "toxic"
    model, label = _model_and_label(name)
    words = label or (model.rpartition(":")[2] if not Path(model).exists() else "") or Path(model).name
    return re.sub(r"\W+", "_", Path(words).name).strip("_").lower()


def fitted(concept: Sequence[str], other: Sequence[str], seed: int = 0) -> tuple[Classifier, float]:
    """Fit a classifier on texts with and without a concept: a logistic regression (scikit-learn) on TF-IDF weights.

    The weights are those of words and of pieces of words.

    Args:
        concept: n texts that show the concept, none of which was learned from.
        other: texts that do not show it.
        seed: seed of the folds of the cross-validation; default: 0.

    Returns:
        (the classifier, its area under the ROC curve in a 5-fold cross-validation, where chance is 0.5).

    Raises:
        LineasError: when a side has fewer than 5 texts, scikit-learn is not installed, or the classifier is worse
            than chance.
    """
    for side, texts in (("concept", concept), ("other", other)):
        if len(texts) < 5:
            raise LineasError(f"fitting a classifier needs at least 5 texts a side, the {side} side has {len(texts)}.")
    with needing("fitting a classifier needs scikit-learn", "evaluate"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline, make_union
    texts, labels = [*concept, *other], [1] * len(concept) + [0] * len(other)
    words = TfidfVectorizer(sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model = make_pipeline(make_union(words, pieces), LogisticRegression(C=10.0, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    area = float(cross_val_score(model, texts, labels, cv=folds, scoring="roc_auc").mean())
    if not area >= CHANCE:
        raise LineasError(
            f"a classifier does not tell these texts from the others: its area under the ROC curve is {area:.3f} in a "
            "cross-validation, where chance is 0.5. Give two sets of texts that differ."
        )
    if area < WEAK:
        warnings.warn(
            f"a classifier hardly tells these texts from the others (area under the ROC curve {area:.3f}, where chance "
            "is 0.5), so do not rely on its results.",
            stacklevel=2,
        )
    model.fit(texts, labels)

    def probabilities(texts: Sequence[str]) -> list[float]:
        return [float(p) for p in model.predict_proba(list(texts))[:, 1]] if texts else []

    probabilities.__name__ = f"fitted on {len(concept)} and {len(other)} texts, area {area:.3f}"
    return probabilities, area


def _profanity() -> Classifier:
    with needing("measuring rudeness needs a classifier", "evaluate"):
        from profanity_check import predict_prob

    def probabilities(texts: Sequence[str]) -> list[float]:
        return [float(p) for p in predict_prob(list(texts))] if texts else []

    probabilities.__name__ = PROFANITY
    return probabilities


def _function(module: str, function: str) -> Classifier:
    here = str(Path.cwd())
    try:
        sys.path.insert(0, here)  # Python does not look here for a console script
        imported = getattr(importlib.import_module(module), function)
    except Exception as error:  # importing runs the user's code
        raise LineasError(f"no classifier {module}:{function}: {type(error).__name__}: {error}.") from None
    finally:
        sys.path.remove(here)

    def checked(texts: Sequence[str]) -> list[float]:
        scores = [float(score) for score in imported(list(texts))]
        if len(scores) != len(texts) or not all(0 <= score <= 1 for score in scores):
            raise LineasError(
                f"{module}:{function} must return one probability (0 to 1) for each text, and did not for {len(texts)} "
                "texts."
            )
        return scores

    checked.__name__ = f"{module}:{function}"
    return checked


def _model_and_label(name: str) -> tuple[str, str | None]:
    model, at, label = name.rpartition("@")
    return (model, label) if at else (name, None)


@lru_cache(maxsize=4)
def _pipeline(name: str, label: str | None, content: str | None) -> Classifier:
    """Load a text-classification model of transformers; another content is another key of the cache."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    options: dict[str, Any] = {"top_k": None, "truncation": True, "batch_size": BATCH}
    with reading(
        f"there is no classifier '{name}': it is neither {PROFANITY} nor MODULE:FUNCTION, and no text-classification "
        "model could be loaded"
    ):
        network = load_weights(AutoModelForSequenceClassification, name, ignore_mismatched_sizes=True, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = pipeline("text-classification", model=network, tokenizer=tokenizer, **options)
    labels = list(model.model.config.id2label.values())
    chosen = _label(name, labels, label)

    def probabilities(texts: Sequence[str]) -> list[float]:
        texts = as_texts("what to judge", texts, "texts")
        with reading(f"{name} could not judge the texts"):
            rows = model(texts) if texts else []
        return [float(next(entry["score"] for entry in row if entry["label"] == chosen)) for row in rows]

    probabilities.__name__ = f"{name}@{chosen}"
    return probabilities


def _label(name: str, labels: list[str], label: str | None) -> str:
    by_lower_case = {one.lower(): one for one in labels}
    guesses = CONCEPT_LABELS if len(labels) > 1 else tuple(by_lower_case)
    for one in guesses if label is None else (label.lower(),):
        if one in by_lower_case:
            return by_lower_case[one]
    raise LineasError(f"name the label of {name} that shows the concept, as {name}@LABEL: it has {', '.join(labels)}.")
