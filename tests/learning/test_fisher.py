"""Fisher information against the full matrix of a tiny network, worked out by enumeration, and against divergences."""

from __future__ import annotations

import families
import pytest
import torch

import lineas
from lineas.intervention.maps import affine
from lineas.learning.fisher import Divergence, diagonal, score_gradients, surprise_gradients
from lineas.learning.trained_maps import TrainedMaps
from lineas.sites import Site
from lineas.steering.hooks import edited

TEXTS = families.PROMPTS[:3]


def enumerated(model: lineas.TextModel, sites: list[Site]) -> torch.Tensor:
    """Return F as the mean over texts and their tokens of `sum_y p(y) grad log p(y) grad log p(y)'`."""
    total = torch.zeros(())
    for text in TEXTS:
        scales = [torch.ones(32, requires_grad=True) for _ in sites]
        shifts = [torch.zeros(32, requires_grad=True) for _ in sites]
        edits = {s: lambda z, w=w, b=b: affine(z, w, b) for s, w, b in zip(sites, scales, shifts)}
        ids = torch.tensor([model.token_ids([text])[0]])
        with torch.enable_grad(), edited(model.network, edits):
            logits = model.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        of_text = torch.zeros(())
        for token in logits:
            gradients = torch.autograd.grad(
                token, [*scales, *shifts], torch.eye(len(token)), retain_graph=True, is_grads_batched=True
            )
            g = torch.cat(gradients, 1)
            of_text = of_text + g.T @ (token.detach().exp()[:, None] * g) / len(logits)
        total = total + of_text / len(TEXTS)
    return total


@pytest.fixture(scope="module")
def llama() -> tuple[lineas.TextModel, list[Site], torch.Tensor]:
    model = families.model("llama")
    for weight in model.network.parameters():
        weight.requires_grad_(False)
        weight.mul_(3)  # so that the predictions are far from uniform
    sites = model.sites()
    return model, sites, enumerated(model, sites)


def test_the_estimate_is_unbiased(llama: tuple[lineas.TextModel, list[Site], torch.Tensor]) -> None:
    """Over many seeds, the mean of every entry is within the error that its deviation allows."""
    model, sites, whole = llama
    parts = model.batch(TEXTS).parts
    estimates = []
    for seed in range(300):
        rows = torch.cat(score_gradients(model, parts, sites, seed), 1)
        estimates.append(rows.T @ rows)
    stack = torch.stack(estimates)
    error = stack.std(0) / len(stack) ** 0.5
    z = (stack.mean(0) - whole) / error
    assert 0.5 < float(z.square().mean()) < 2  # 1 if every entry is right
    trace = torch.stack([e.trace() for e in estimates])
    assert abs(float(trace.mean() - whole.trace())) < 4 * float(trace.std()) / len(trace) ** 0.5
    assert float(trace.std()) / len(trace) ** 0.5 < 0.1 * float(whole.trace())


def test_half_of_d_f_d_is_the_divergence_of_small_changes(
    llama: tuple[lineas.TextModel, list[Site], torch.Tensor],
) -> None:
    model, sites, whole = llama
    parts = model.batch(TEXTS).parts
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 3e-4):
        d = size * torch.randn(len(whole), generator=generator)
        scales, shifts = d.view(2, len(sites), 32)
        edits = {s: lambda z, w=1 + w, b=b: affine(z, w, b) for s, w, b in zip(sites, scales, shifts)}
        assert Divergence(model, parts, edits)() == pytest.approx(float(d @ whole @ d) / 2, rel=0.03)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_parts_of_any_size_give_the_same_rows(family: str) -> None:
    """Texts are drawn in the same order however they are cut into parts."""
    model = families.model(family)
    for weight in model.network.parameters():
        weight.requires_grad_(False)
    samples = model.samples(families.PROMPTS)
    whole, parts = (score_gradients(model, samples.batch(limit).parts, model.sites(), 0) for limit in (None, 12))
    for one, other in zip(whole, parts):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)
    assert all(float(size.min()) >= 0 and float(size.max()) > 0 for size in diagonal(whole))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("limit", [None, 1])
def test_surprise_gradients_are_those_of_the_mean_loss_of_the_texts(family: str, limit: int | None) -> None:
    """The oracle is the loss that transformers computes for one text at a time, and finite differences of it."""
    model = families.model(family)
    for weight in model.network.parameters():
        weight.requires_grad_(False)
    sites, texts = model.sites(), families.PROMPTS[:3]
    maps = TrainedMaps(sites, {site.name: torch.zeros(32) for site in sites})
    maps.fix(scales=[], shifts=[sites[0].name])
    found = surprise_gradients(model, model.samples(texts).batch(limit).parts, maps.edits, maps.parameters)
    assert not found[len(sites)].any()  # a fixed shift
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(g.shape, generator=generator) for g in found]
    directions[len(sites)].zero_()

    def loss(size: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(maps.parameters, directions):
                parameter.add_(size * direction)
            losses = []
            for text in texts:
                ids = torch.tensor([model.token_ids([text])[0]])
                with edited(model.network, maps.edits):
                    losses.append(float(model.network(input_ids=ids, labels=ids).loss.double()))
            for parameter, direction in zip(maps.parameters, directions):
                parameter.sub_(size * direction)
        return sum(losses) / len(losses)

    slope = sum(float((g * d).sum()) for g, d in zip(found, directions))
    assert (loss(1e-2) - loss(-1e-2)) / 2e-2 == pytest.approx(slope, rel=0.02, abs=1e-4)
