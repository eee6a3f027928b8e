"""How toxic texts are, by a classifier of one's choice."""

from __future__ import annotations

from collections.abc import Sequence

from lineas.errors import LineasError


def toxicity_scores(texts: Sequence[str]) -> list[float]:
    """Each text's probability of being rude or profane, by alt-profanity-check (a linear model over words; offline).

    Args:
        texts: any; an empty text scores as the classifier scores the empty string.

    Returns:
        one probability a text; toxic means 0.5 or more.

    Raises:
        LineasError: when the classifier is not installed.

    >>> mild, rude = toxicity_scores(["What a lovely garden.", "You are an idiot, shut up."])
    >>> mild < 0.5 < rude
    True
    """
    try:
        from profanity_check import predict_prob
    except ImportError:
        raise LineasError("measuring rudeness needs a classifier: pip install 'lineas[evaluate]'.") from None
    return [float(p) for p in predict_prob(list(texts))] if texts else []
