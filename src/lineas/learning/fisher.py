"""Fisher information: what a small change of each scale and shift costs the model's own predictions on neutral text.

For small changes d of all scales and shifts, the mean divergence from the untouched model is `1/2 d' F d + o(|d|^2)`,
with `F = E_tokens E_{y ~ p} [grad log p(y) grad log p(y)']` (Amari 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lineas.learning.capture import Model
from lineas.models.samples import Part, Samples
from lineas.sites import Site
from lineas.steering.hooks import edited


def score_gradients(
    model: Model, neutral: Samples[Any], sites: Sequence[Site], seed: int, limit: int | None
) -> list[torch.Tensor]:
    """Return the gradients of a random score of each neutral text, `[n, d]` for every scale, then for every shift.

    The maps are the identity. `rows.T @ rows`, with all gradients of a text side by side in a row, is an unbiased
    estimate of F. One backward pass gives the rows of a whole part: the gradient with respect to a shift is the sum over
    a text's tokens of the gradient g with respect to the activation z, and that with respect to a scale the sum of g z.

    Args:
        seed: seed of the tokens that are drawn.
        limit: largest number of tokens in a part; None for no limit.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: dict[tuple[str, int], torch.Tensor] = {}

    def add(which: int, site: Site, part: Part, values: torch.Tensor) -> None:
        pooled = part.pool(values, site, "sum").float() / len(neutral) ** 0.5
        key = site.name, which
        if key not in rows:
            rows[key] = pooled.new_zeros(len(neutral), pooled.shape[1])
        rows[key][part.rows] += pooled

    def reader(part: Part, site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(z: torch.Tensor) -> torch.Tensor:
            leaf = z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
            before = z.detach()

            def take(gradient: torch.Tensor) -> None:
                add(0, site, part, gradient.float() * before.float())
                add(1, site, part, gradient)

            leaf.register_hook(take)
            return leaf

        return edit

    for part in neutral.batch(limit).parts:
        with torch.enable_grad(), edited(model.network, {site: reader(part, site) for site in sites}):
            model.sampled_score(model.predict(part), part, generator).backward()
    return [rows[site.name, which] for which in (0, 1) for site in sites]


def diagonal(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the diagonal of F, `[d]` for every scale, then for every shift, from `score_gradients`."""
    return [row.square().sum(0) for row in rows]


@torch.no_grad()
def divergence(model: Model, neutral: Samples[Any], edits: Any, limit: int | None) -> float:
    """Return the mean over neutral texts of the divergence of the edited model from the untouched one, in nats a token.

    Images have no tokens: see `lineas.models.predictions`.
    """
    by_part = []
    for part in neutral.batch(limit).parts:
        untouched = model.predict(part)
        with edited(model.network, edits):
            by_part.append(model.divergences(untouched, model.predict(part), part))
    return float(torch.cat(by_part).double().mean())
