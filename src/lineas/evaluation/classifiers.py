"""Classifiers of texts: a name, a function, or one fitted on two sets of texts, as a function to probabilities."""

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
from lineas.errors import LineasError, reading
from lineas.evaluation.result_cache import content_of
from lineas.measures import measure
from lineas.models.loader_report import load_weights

Classifier = Callable[[Sequence[str]], list[float]]
"""From texts to each one's probability of showing the concept; 0.5 or more counts as yes."""

PROFANITY = "profanity-check"
CONCEPT_LABELS = ("toxic", "toxicity", "positive", "label_1", "1")
"""Of a classifier with several labels, the one that is meant where none is named."""
BATCH = 32
CHANCE, WEAK = 0.4, 0.6
"""Areas under the ROC curve: below the first two sets are mixed up, below the second they are hardly told apart."""


def classifier(name: str | Classifier) -> Classifier:
    """A classifier by name.

    Args:
        name: "profanity-check" (alt-profanity-check, a linear model over words; offline); "MODULE:FUNCTION" for a
            Python function from a list of texts to probabilities; or a text-classification model as hub id or folder,
            with "@LABEL" where it is not plain which label counts: "s-nlp/roberta_toxicity_classifier@toxic". A
            function is given back as it is.

    Raises:
        LineasError: when there is no such classifier, it cannot be loaded, or its label is not plain.

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


def by_column(given: Sequence[str]) -> dict[str, str]:
    """Return classifiers by the column that each fills, which bears its name.

    Args:
        given: names that `classifier` knows, each with COLUMN= before it where another name is wanted; "none" alone for
            none. The column of profanity-check is "toxic", that of a model its label, else its own name.

    Raises:
        LineasError: when two would fill one column, or a column is another measure's.

    >>> by_column(["profanity-check", "judges:is_polite", "me/model@Formal", "kind=me/kindness"])
    {'toxic': 'profanity-check', 'is_polite': 'judges:is_polite', 'formal': 'me/model@Formal', 'kind': 'me/kindness'}
    """
    if list(given) == ["none"]:
        return {}
    found: dict[str, str] = {}
    for one in given:
        column, equals, name = one.partition("=")
        if not equals or not re.fullmatch(r"\w+", column) or Path(one).exists():
            column, name = _column(one), one
        if name == "none":
            raise LineasError("--classifier none stands alone; leave it out, or leave out the others.")
        if not column or column in found:
            raise LineasError(f"two classifiers would fill the column '{column}'; write COLUMN=NAME for one of them.")
        if measure(column).role != "effect" or column.endswith("_score"):
            raise LineasError(f"a classifier cannot fill the column '{column}', which is another measure's.")
        found[column] = name
    return found


def _column(name: str) -> str:
    """Return what a classifier of this name tells of a text, in a word."""
    if name == PROFANITY:
        return "toxic"
    model, label = _model_and_label(name)
    told = label or (model.rpartition(":")[2] if not Path(model).exists() else "") or Path(model).name
    return re.sub(r"\W+", "_", Path(told).name).strip("_").lower()


def fitted(concept: Sequence[str], other: Sequence[str], seed: int = 0) -> tuple[Classifier, float]:
    """A classifier fitted on texts that show a concept and texts that do not: words and pieces of words, weighted by
    TF-IDF, into a logistic regression (scikit-learn).

    Args:
        concept: texts that show it, kept apart from those that were learned from.
        other: texts that do not.
        seed: of the folds of the cross-validation.

    Returns:
        (the classifier, its area under the ROC curve in a cross-validation with 5 folds, 0.5 being chance).

    Raises:
        LineasError: when there are fewer than 5 texts a side, or scikit-learn is not installed.
    """
    for side, texts in (("concept", concept), ("other", other)):
        if len(texts) < 5:
            raise LineasError(f"a classifier is fitted on at least 5 texts a side, the {side} side has {len(texts)}.")
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError:
        raise LineasError("fitting a classifier needs scikit-learn: pip install 'lineas[evaluate]'.") from None
    texts, labels = [*concept, *other], [1] * len(concept) + [0] * len(other)
    words = TfidfVectorizer(sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model = make_pipeline(make_union(words, pieces), LogisticRegression(C=10.0, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    area = float(cross_val_score(model, texts, labels, cv=folds, scoring="roc_auc").mean())
    if not area >= CHANCE:
        raise LineasError(
            f"a classifier does not tell these texts from the others: its area under the ROC curve is {area:.3f} in a "
            "cross-validation, where chance has 0.5; are both the same? Give texts that differ."
        )
    if area < WEAK:
        warnings.warn(
            f"a classifier hardly tells these texts from the others (area under the ROC curve {area:.3f}, chance has "
            "0.5), so what it says of continuations means little.",
            stacklevel=2,
        )
    model.fit(texts, labels)

    def probabilities(given: Sequence[str]) -> list[float]:
        return [float(p) for p in model.predict_proba(list(given))[:, 1]] if given else []

    probabilities.__name__ = f"fitted on {len(concept)} and {len(other)} texts, area {area:.3f}"
    return probabilities, area


def _profanity() -> Classifier:
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise LineasError("measuring rudeness needs a classifier: pip install 'lineas[evaluate]'.") from None

    def probabilities(texts: Sequence[str]) -> list[float]:
        return [float(p) for p in predict_prob(list(texts))] if texts else []

    probabilities.__name__ = PROFANITY
    return probabilities


def _function(module: str, function: str) -> Classifier:
    here = str(Path.cwd())
    try:
        sys.path.insert(0, here)  # a console script does not look here by itself
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise LineasError(f"no classifier {module}:{function}: {type(error).__name__}: {error}.") from None
    finally:
        sys.path.remove(here)

    def checked(texts: Sequence[str]) -> list[float]:
        scores = [float(score) for score in found(list(texts))]
        if len(scores) != len(texts) or not all(0 <= score <= 1 for score in scores):
            raise LineasError(f"{module}:{function} gave no probability a text (0 to 1) for {len(texts)} texts.")
        return scores

    checked.__name__ = f"{module}:{function}"
    return checked


def _model_and_label(name: str) -> tuple[str, str | None]:
    model, at, label = name.rpartition("@")
    return (model, label) if at else (name, None)


@lru_cache(maxsize=4)
def _pipeline(name: str, label: str | None, content: str | None) -> Classifier:
    """A text-classification model of transformers, loaded anew where its content is another."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    options: dict[str, Any] = {"top_k": None, "truncation": True, "batch_size": BATCH}
    with reading(
        f"there is no classifier '{name}': not {PROFANITY}, not MODULE:FUNCTION, and no text-classification model that "
        "can be loaded"
    ):
        network = load_weights(AutoModelForSequenceClassification, name, ignore_mismatched_sizes=True, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = pipeline("text-classification", model=network, tokenizer=tokenizer, **options)
    labels = list(model.model.config.id2label.values())
    chosen = _label(name, labels, label)

    def probabilities(texts: Sequence[str]) -> list[float]:
        texts = as_texts("what is judged", texts, "texts")
        with reading(f"{name} could not judge the texts"):
            rows = model(texts) if texts else []
        return [float(next(entry["score"] for entry in row if entry["label"] == chosen)) for row in rows]

    probabilities.__name__ = f"{name}@{chosen}"
    return probabilities


def _label(name: str, labels: list[str], wanted: str | None) -> str:
    known = {label.lower(): label for label in labels}
    if wanted is not None and wanted.lower() in known:
        return known[wanted.lower()]
    guesses = [] if wanted is not None else [known[label] for label in CONCEPT_LABELS if label in known]
    if wanted is None and (guesses or len(labels) == 1):
        return (guesses or labels)[0]
    raise LineasError(f"say which label of {name} counts, as {name}@LABEL: it has {', '.join(labels)}.")
