"""Gating: which tokens an intervention is for, learned from source against control prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean

import torch

from lineas.checks import COUNT, SEED, TOKENS, as_texts
from lineas.errors import DESTROYED, LineasError
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
"""Tokens a side that a gate is fitted on; more are thinned out at random."""
Ranked = tuple[torch.Tensor, torch.Tensor]
"""Tokens `[t, d]`, and a random number of each `[t]`."""


@dataclass(frozen=True)
class Told:
    """How well one site's gate tells the sides apart, on the tokens it was fitted on.

    Args:
        area: under the ROC curve; 0.5 is chance.
        source: mean share of a source token.
        control: mean share of a control token.
    """

    area: float
    source: float
    control: float


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
    """The same intervention, where it acts on a token as much as that token looks like the source's.

    At every site a logistic regression on the first principal components of the tokens' activations, on the untouched
    network, balanced between the sides (after "DSAS", arXiv 2512.03661).

    Args:
        model: what the intervention steers.
        intervention: without gates.
        source: prompts that need steering, such as those it was learned from.
        control: neutral prompts that do not.
        components: principal components that a gate looks at.
        max_length: tokens of a prompt.
        seed: of the thinning, where there are more than 20,000 tokens a side.

    Raises:
        LineasError: when scikit-learn is not installed, a side is empty, or the intervention does not fit the model.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise LineasError("gates need scikit-learn: pip install 'lineas[evaluate]'.") from None
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
    found = [tokens(model, prompts, sites, max_length, seed) for prompts in (source, control)]
    gates, told = {}, {}
    for name in found[0]:
        sides = [side[name].double().cpu() for side in found]
        labels = [1] * len(sides[0]) + [0] * len(sides[1])
        z = torch.cat(sides)
        center = z.mean(0)
        _, sizes, directions = torch.linalg.svd(z - center, full_matrices=False)
        kept = min(components, int((sizes > sizes[0] * 1e-6).sum()))
        if kept == 0:
            raise LineasError(f"all tokens are alike at {name}, so none needs more than another; give longer prompts.")
        directions = directions[:kept] / (sizes[:kept] / len(z) ** 0.5).unsqueeze(1)  # each of deviation 1
        scores = (z - center) @ directions.T
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(scores.numpy(), labels)
        weight = torch.from_numpy(fitted.coef_[0]) @ directions
        bias = float(fitted.intercept_[0]) - float(center @ weight)
        gates[name] = Gate(weight.float(), torch.tensor(bias, dtype=torch.float32))
        shares = fitted.predict_proba(scores.numpy())[:, 1]
        told[name] = Told(
            float(roc_auc_score(labels, shares)),
            float(shares[: len(sides[0])].mean()),
            float(shares[len(sides[0]) :].mean()),
        )
    facts = {
        "components": components,
        "max_length": max_length,
        "seed": seed,
        "dtype": type_name(weights_type(model.network)),
        "data": {"source": described(source), "control": described(control)},
        "area": mean(one.area for one in told.values()),
        "sites": {name: asdict(one) for name, one in told.items()},
        **stamp(),
    }
    return intervention.gated(gates).with_facts(gate=facts)


@torch.no_grad()
def tokens(
    model: Model, prompts: Sequence[str], sites: Sequence[Site], max_length: int = 128, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Every token's (or pixel's) activation: by site name, float32 `[t, d]`, at most MOST of them at random."""
    encoded = model.samples(prompts, max_length)
    warn_if_cut(encoded)
    seen: dict[str, list[Ranked]] = {site.name: [] for site in sites}
    generator = torch.Generator().manual_seed(seed)
    with frozen(model.network):
        for part in encoded.batch(SOME_TOKENS).parts:
            for name, activation in capture_part(model, part, sites, "none").items():
                z = stacked(activation)
                seen[name].append((z, torch.rand(len(z), generator=generator)))
                if sum(len(rank) for _, rank in seen[name]) > 2 * MOST:  # never hold much more than is kept
                    seen[name] = [_thinned(seen[name])]
    found = {name: _thinned(parts)[0] for name, parts in seen.items()}
    if not all(bool(z.isfinite().all()) for z in found.values()):
        raise LineasError(DESTROYED)
    return found


def _thinned(parts: Sequence[Ranked]) -> Ranked:
    """At most MOST of all tokens, in their order: those of the smallest random numbers."""
    z, rank = (torch.cat(one) for one in zip(*parts))
    few = rank.argsort()[:MOST].sort().values
    return z[few.to(z.device)], rank[few]
