"""Samples: texts and pictures of the same prompts at several strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from lineas.intervention.intervention import Intervention
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering.positions import Tokens
from lineas.steering.steer import steer


def texts_at(
    model: TextModel,
    intervention: Intervention | None,
    strengths: Sequence[float],
    prompts: Sequence[str],
    tokens: Tokens = "all",
    other_model: bool = False,
    **sampling: Any,
) -> dict[float, list[str]]:
    """Return the continuations of the prompts by strength.

    Args:
        intervention: intervention to apply; None for the untouched model.
        strengths: strengths, 0 for the untouched model.
        sampling: arguments of `TextModel.generate`.
    """
    texts = {}
    for strength in strengths:
        with steer(model, intervention, strength, tokens, other_model) if intervention else nullcontext():
            texts[strength] = model.generate(prompts, **sampling)
    return texts


def pictures_at(
    model: ImageModel,
    intervention: Intervention | None,
    strengths: Sequence[float],
    prompts: Sequence[str],
    seed: int = 0,
    batch_size: int = 4,
    other_model: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[list[Any]]:
    """Return for each prompt one picture (PIL) at each strength.

    Args:
        intervention: intervention to apply; None for the untouched model.
        strengths: strengths, 0 for the untouched model.
        seed: seed of the first prompt; the next prompt has the next seed.
    """
    rows: list[list[Any]] = [[] for _ in prompts]
    for strength in strengths:
        with steer(model, intervention, strength, other_model=other_model) if intervention else nullcontext():
            for row, picture in zip(rows, model.generate(prompts, seed, batch_size, progress)):
                row.append(picture)
    return rows
