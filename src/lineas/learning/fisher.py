"""Fisher information: what a small change of each scale and shift does to the model's predictions on neutral text.

For small changes d of all scales and shifts, the mean divergence from the untouched model is `1/2 d' F d + o(|d|^2)`,
with `F = E_tokens E_{y ~ p} [grad log p(y) grad log p(y)']` (Amari 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lineas.errors import LineasError
from lineas.learning.capture import Model
from lineas.models.samples import Part
from lineas.sites import Site
from lineas.steering.hooks import Edit, edited


def score_gradients(model: Model, parts: Sequence[Part], sites: Sequence[Site], seed: int) -> list[torch.Tensor]:
    """Return the gradients of each neutral text's random score, `[n, d]` for every scale, then for every shift.

    The maps are the identity. `rows.T @ rows`, with all gradients of a text side by side in a row, is an unbiased
    estimate of F. One backward pass gives the rows of a whole part. The gradient with respect to a shift is the sum
    over a text's tokens of the gradient g with respect to the activation z; that with respect to a scale is the sum of
    g z.

    Args:
        parts: the parts of the batch.
        seed: seed of the tokens that are drawn.
    """
    generator, count = torch.Generator().manual_seed(seed), sum(len(part.rows) for part in parts)
    rows: dict[tuple[str, int], torch.Tensor] = {}

    def add(which: int, site: Site, part: Part, values: torch.Tensor) -> None:
        rows[site.name, which][part.rows] += part.pool(values, site, "sum").float() / count**0.5

    def reader(part: Part, site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(z: torch.Tensor) -> torch.Tensor:
            for which in (0, 1):  # zeros where no prediction depends on the site
                if (site.name, which) not in rows:
                    width = z.shape[site.axis]
                    rows[site.name, which] = torch.zeros(count, width, device=z.device)
            leaf = z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
            before = z.detach()

            def take(gradient: torch.Tensor) -> None:
                add(0, site, part, gradient.float() * before.float())
                add(1, site, part, gradient)

            leaf.register_hook(take)
            return leaf

        return edit

    for part in parts:
        with torch.enable_grad(), edited(model.network, {site: reader(part, site) for site in sites}):
            score = model.sampled_score(model.predict(part), part, generator)
            if score.requires_grad:  # else it depends on no site
                score.backward()
    if not any(bool(row.any()) for row in rows.values()):
        others = f" and the {len(sites) - 1} other site{'s' * (len(sites) > 2)}" * (len(sites) > 1)
        raise LineasError(
            f"a change at {sites[0].name}{others} changes no prediction, so no damage can be measured: no later module "
            "reads that output; learn at other sites."
        )
    return [rows[site.name, which] for which in (0, 1) for site in sites]


def diagonal(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the diagonal of F, `[d]` for every scale, then for every shift, from `score_gradients`."""
    return [row.square().sum(0) for row in rows]


def surprise_gradients(
    model: Model, parts: Sequence[Part], edits: Mapping[Site, Edit], parameters: Sequence[torch.nn.Parameter]
) -> list[torch.Tensor]:
    """Return the gradient of the neutral texts' mean surprise, the logarithm of the perplexity, by each parameter.

    The surprise of a text is the mean of `-log p(y)` over its own tokens y. Where the model predicts no text, the
    gradients are zero.

    Args:
        parts: the parts of the batch.
        edits: the edits with these parameters.
    """
    count = sum(len(part.rows) for part in parts)
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for part in parts:
        with torch.enable_grad(), edited(model.network, edits):
            likelihoods = model.log_likelihoods(model.predict(part), part)
            if likelihoods is None:
                return gradients
            of_part = torch.autograd.grad(likelihoods.sum() / -count, parameters, allow_unused=True)
        for gradient, one in zip(gradients, of_part):
            if one is not None:
                gradient += one
    return gradients


class Divergence:
    """The divergence of an edited model from the untouched one on neutral prompts, as often as it is called.

    Args:
        parts: the neutral prompts.
        edits: the edits whose parameters change between the calls.
        memory: number of bytes for the untouched model's predictions; what they exceed is predicted anew each time.
    """

    def __init__(self, model: Model, parts: Sequence[Part], edits: Mapping[Site, Edit], memory: float = 0) -> None:
        self._model, self._parts, self._edits, self._left = model, parts, edits, memory
        self._untouched: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the mean over the prompts, for texts in nats a token (see `lineas.models.predictions`)."""
        return float(torch.cat([self._of_part(i, part) for i, part in enumerate(self._parts)]).double().mean())

    def _of_part(self, i: int, part: Part) -> torch.Tensor:
        untouched = self._untouched.get(i)
        if untouched is None:
            untouched = self._model.predict(part)
            if untouched.nbytes <= self._left:
                self._untouched[i] = untouched
                self._left -= untouched.nbytes
        with edited(self._model.network, self._edits):
            return self._model.divergences(untouched, self._model.predict(part), part)
