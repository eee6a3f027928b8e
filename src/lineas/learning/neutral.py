"""Neutral prompts, on which the model should stay as it is, and warnings about the budget that is spent on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lineas.checks import as_texts
from lineas.errors import LineasError
from lineas.learning.capture import Model, warn_if_cut
from lineas.learning.method import Fit, Method
from lineas.models.samples import Samples
from lineas.printable import shortened
from lineas.prompts import read_prompts

SHIPPED = "lineas:neutral/learning"
"""Neutral text that ships, of many kinds, apart from the sentences on which interventions are judged."""
UNKNOWN = 0.5
"""Share of unknown tokens above which text is of a script that the model does not read."""
NEARLY = 0.9
"""Share of a budget of divergence below which the budget counts as not reached."""


def measures_damage(method: Method) -> bool:
    """Return whether a method measures its steps on neutral prompts."""
    return getattr(method, "optimizer", None) == "natural"


def check_takes_neutral(method: Method) -> None:
    """Refuse neutral prompts for a method that does nothing with them; call it before loading a model."""
    if getattr(method, "optimizer", None) not in ("auto", "natural"):
        raise LineasError("neutral prompts serve the optimizer 'natural' alone; leave them out (--neutral).")


def neutral_samples(
    model: Model, method: Method, neutral: Sequence[str] | None, target: Samples[Any], max_length: int
) -> Samples[Any] | None:
    """Return the prompts on which a method measures damage, encoded; None for a method that measures none."""
    if not measures_damage(method):
        if neutral is not None:
            check_takes_neutral(method)
        return None
    if neutral is None:
        return model.samples(read_prompts(SHIPPED), max_length) if target.ids else target  # images keep to the target
    neutral = as_texts("the neutral prompts", neutral)
    if not neutral:
        raise LineasError("there are no neutral prompts; give at least one, or leave them out for those that ship.")
    encoded = model.samples(neutral, max_length)
    if short := [text for text, ids in zip(neutral, encoded.ids) if len(ids) < 2]:
        raise LineasError(
            f"the neutral prompt {shortened(repr(short[0]))} has one token, so there is none to predict; leave it out."
        )
    tokens = [token for ids in encoded.ids for token in ids]
    unknown_id: Any = getattr(getattr(model, "tokenizer", None), "unk_token_id", None)
    unknown = tokens.count(unknown_id)
    if unknown > UNKNOWN * len(tokens):
        raise LineasError(
            f"{unknown} of {len(tokens)} tokens of the neutral prompts are unknown to {model.name}; give text in a "
            "language that it reads."
        )
    warn_if_cut(encoded, "neutral ")
    return encoded


def warn_of_budget(fit: Fit, divergence: float, budget: float) -> None:
    """Warn when learning ended with much of its budget unspent, or when the budget took it far beyond the target."""
    if divergence < NEARLY * budget:
        warnings.warn(
            f"the divergence reached {divergence:.2g} of {budget:g} nats in {len(fit.costs)} steps: the penalty, or "
            "the few neurons that may change, allow no more; give a smaller gamma or more sites.",
            stacklevel=3,
        )
    elif fit.end is not None and fit.end > fit.costs[0]:
        warnings.warn(
            f"at a divergence of {budget:g} the source is farther from the target than before, on its other side; give "
            "a smaller divergence, or a strength below 1.",
            stacklevel=3,
        )
