"""The variety of continuations: how varied and how repetitive they are, and how many are empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n: the number of different sequences of n words, divided by the number of all.

    All texts are counted together; without any sequence it is 0 (Li et al. 2016, arXiv 1510.03055).

    >>> distinct(["a b a b", "a b"], 2)
    0.5
    """
    counts = Counter(gram for text in texts for gram in _grams(text, n))
    return len(counts) / counts.total() if counts else 0.0


def repetition(texts: Sequence[str]) -> float:
    """Return the share of 4-word sequences that occurred earlier in the same text, as a mean over texts.

    Texts of fewer than 4 words count as 0 (Welleck et al. 2020, arXiv 1908.04319).

    >>> repetition(["no no no no no", "one two three four five"])
    0.25
    """
    sequences = [_grams(text, 4) for text in texts]
    shares = [1 - len(set(grams)) / len(grams) if grams else 0.0 for grams in sequences]
    return sum(shares) / len(shares) if shares else 0.0


def empty(texts: Sequence[str]) -> float:
    """Return the share of texts without a word.

    >>> empty(["", " ", "a"])
    0.6666666666666666
    """
    return sum(not text.strip() for text in texts) / len(texts) if texts else 0.0


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
