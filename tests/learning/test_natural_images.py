"""The natural gradient on images: its divergence is that of the denoiser's outputs, its Fisher information the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lineas
from lineas.intervention.maps import affine
from lineas.learning.fisher import Divergence, score_gradients
from lineas.steering.hooks import edited

DAY = ["a red circle on white", "a big blue moon on cream", "a green triangle on rose"]
NIGHT = ["a red circle on white at night", "a big blue moon on cream at night", "a green triangle on rose at night"]


@pytest.fixture(scope="module")
def shapes() -> Any:
    """Return the small image model, with fewer steps."""
    return lineas.load("shapes", dtype="float32").set(steps=2)  # pyright: ignore[reportAttributeAccessIssue]


def outputs(model: Any) -> list[torch.Tensor]:
    """Return the denoiser's outputs in all steps, one tensor for each prompt of NIGHT."""
    seen: list[torch.Tensor] = []
    handle = model.network.denoiser.register_forward_hook(lambda module, args, result: seen.append(result[0]))
    with torch.no_grad():
        for part in model.samples(NIGHT).batch().parts:
            model.run(part)
    handle.remove()
    return [torch.cat([step[i].flatten() for step in seen]) for i in range(len(NIGHT))]


def test_the_budget_is_spent_on_the_denoisers_outputs(shapes: Any) -> None:
    """By default the target is what should stay as it is."""
    method = lineas.LinEAS(optimizer="natural", divergence=0.02, steps=2)
    learned = lineas.learn(shapes, DAY, NIGHT, method, progress=False)
    before = outputs(shapes)
    with lineas.steer(shapes, learned):
        after = outputs(shapes)
    relative = [(b - a).square().mean() / a.square().mean() / 2 for a, b in zip(before, after)]
    assert float(torch.stack(relative).mean()) == pytest.approx(learned.facts["divergence"], rel=1e-3)
    assert learned.facts["divergence"] == pytest.approx(0.02, rel=0.021)


def test_random_projections_estimate_the_divergence_of_small_changes(shapes: Any) -> None:
    """The mean over seeds of `(row d)^2 / 2`, summed over prompts, is the divergence of a small change d.

    In one denoising step: gradients do not reach from one step into the next.
    """
    shapes = shapes.set(steps=1)
    shapes.network.requires_grad_(False)
    sites = shapes.sites()[2:4]
    parts = shapes.samples(NIGHT[:2]).batch().parts
    widths = [gradient.shape[1] for gradient in score_gradients(shapes, parts, sites, 0)]
    generator = torch.Generator().manual_seed(0)
    d = [1e-3 * torch.randn(width, generator=generator) for width in widths]
    scales, shifts = d[: len(sites)], d[len(sites) :]
    edits = {
        site: lambda z, scale=1 + scale, shift=shift, axis=site.axis: affine(z, scale, shift, axis)
        for site, scale, shift in zip(sites, scales, shifts)
    }
    measured = Divergence(shapes, parts, edits)()
    estimates = []
    for seed in range(60):
        rows = torch.cat(score_gradients(shapes, parts, sites, seed), 1)
        estimates.append(float((rows @ torch.cat(d)).square().sum()) / 2)
    values = torch.tensor(estimates)
    assert abs(float(values.mean()) - measured) < 4 * float(values.std()) / len(values) ** 0.5
    assert float(values.std()) / len(values) ** 0.5 < 0.3 * measured
    with edited(shapes.network, {}):
        assert Divergence(shapes, parts, {})() == 0
