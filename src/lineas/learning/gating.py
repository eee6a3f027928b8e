"""Gating: learn from source and control prompts which tokens an intervention acts on."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch

from lineas.checks import COUNT, SEED, TOKENS, as_texts
from lineas.errors import DESTROYED, LineasError, needing
from lineas.intervention.gate import Gate
from lineas.intervention.intervention import Intervention
from lineas.learning.capture import SOME_TOKENS, Model, capture_part, stacked, warn_if_cut
from lineas.models.frozen import frozen
from lineas.modules import type_name, weights_type
from lineas.prompts import described
from lineas.sites import Site
from lineas.steering.exclusive import exclusively
from lineas.versions import stamp

MOST = 20_000
"""Largest number of tokens of each side; more are thinned out at random."""
Ranked = tuple[torch.Tensor, torch.Tensor]
"""Tokens `[t, d]`, and a random number for each, `[t]`."""


@exclusively
def gate(
    model: Model,
    intervention: Intervention,
    source: Sequence[str],
    control: Sequence[str],
    components: int = 8,
    max_length: int = 128,
    seed: int = 0,
) -> Intervention:
    """Return the intervention with gates, so that it acts more on tokens that look like the source's.

    Each site's gate is a logistic regression on the first principal components of the tokens' activations. These come
    from the untouched network, and both sides have the same weight (after "DSAS", arXiv 2512.03661).

    Args:
        model: model that the intervention steers.
        intervention: intervention to gate; gates that it has are replaced.
        source: prompts that need steering, such as those it was learned from.
        control: neutral prompts, which need no steering.
        components: number of principal components that a gate reads.
        max_length: largest number of tokens of a prompt; the rest is cut.
        seed: seed of the thinning, where a side has more than 20,000 tokens.

    Raises:
        LineasError: when scikit-learn is not installed, a side is empty, all tokens of a site are alike, or the
            intervention changes nothing or does not fit the model.
    """
    with needing("gates need scikit-learn", "evaluate"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    source, control = as_texts("the source", source), as_texts("the control", control)
    for side, prompts in (("source", source), ("control", control)):
        if not prompts:
            raise LineasError(f"the {side} needs a list of at least one prompt.")
    components, seed = COUNT.check("components", components), SEED.check("seed", seed)
    max_length = TOKENS.check("max_length", max_length)
    intervention.check_fits(model.network)
    sites = [site for name, site in intervention.sites.items() if not intervention.maps[name].is_identity()]
    if not sites:
        raise LineasError("this intervention changes nothing, so there is nothing to gate.")
    source_tokens, control_tokens = (tokens(model, prompts, sites, max_length, seed) for prompts in (source, control))
    gates, separations = {}, {}
    for name, of_source in source_tokens.items():
        labels = [1] * len(of_source) + [0] * len(control_tokens[name])
        z = torch.cat([of_source, control_tokens[name]]).double().cpu()
        center = z.mean(0)
        _, sizes, directions = torch.linalg.svd(z - center, full_matrices=False)
        count = min(components, int((sizes > sizes[0] * 1e-6).sum()))
        if count == 0:
            raise LineasError(f"all tokens are alike at {name}, so none needs more than another; give longer prompts.")
        directions = directions[:count] / (sizes[:count] / len(z) ** 0.5).unsqueeze(1)  # each of deviation 1
        scores = (z - center) @ directions.T
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scores.numpy(), labels)
        weight = torch.from_numpy(fitted.coef_[0]) @ directions
        bias = float(fitted.intercept_[0]) - float(center @ weight)
        gates[name] = Gate(weight.float(), torch.tensor(bias, dtype=torch.float32))
        shares = fitted.predict_proba(scores.numpy())[:, 1]
        area, n = float(roc_auc_score(labels, shares)), len(of_source)  # 0.5 is chance
        # of a source and of a control token: the mean share of the map that it gets
        separations[name] = {"area": area, "source": float(shares[:n].mean()), "control": float(shares[n:].mean())}
    facts = {
        "components": components,
        "max_length": max_length,
        "seed": seed,
        "dtype": type_name(weights_type(model.network)),
        "data": {"source": described(source), "control": described(control)},
        "area": mean(site["area"] for site in separations.values()),
        "sites": separations,
        **stamp(),
    }
    return intervention.gated(gates).with_facts(gate=facts)


@torch.no_grad()
def tokens(
    model: Model, prompts: Sequence[str], sites: Sequence[Site], max_length: int = 128, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return the activations of tokens (or pixels) by site name, float32 `[t, d]`, at most MOST of them at random."""
    encoded = model.samples(prompts, max_length)
    warn_if_cut(encoded)
    ranked: dict[str, list[Ranked]] = {site.name: [] for site in sites}
    generator = torch.Generator().manual_seed(seed)
    with frozen(model.network):
        for part in encoded.batch(SOME_TOKENS).parts:
            for name, activation in capture_part(model, part, sites, "none").items():
                z = stacked(activation)
                ranked[name].append((z, torch.rand(len(z), generator=generator)))
                if sum(len(rank) for _, rank in ranked[name]) > 2 * MOST:  # bounds the memory
                    ranked[name] = [_thinned(ranked[name])]
    thinned = {name: _thinned(parts)[0] for name, parts in ranked.items()}
    if not all(bool(z.isfinite().all()) for z in thinned.values()):
        raise LineasError(DESTROYED)
    return thinned


def _thinned(parts: Sequence[Ranked]) -> Ranked:
    """Return the MOST tokens with the smallest random numbers, in their order."""
    z, rank = (torch.cat(one) for one in zip(*parts))
    smallest = rank.argsort()[:MOST].sort().values
    return z[smallest.to(z.device)], rank[smallest]
