"""`learn`: the task checked, a method run, and its maps made an intervention with the facts it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from lineas.alone import undisturbed
from lineas.base import BaseModel
from lineas.errors import LineasError
from lineas.folds import folding
from lineas.intervention import Intervention
from lineas.learning.capture import Model, warn_if_cut
from lineas.learning.fitting import Method, Progress, Task
from lineas.learning.lineas import LinEAS
from lineas.learning.memory import as_bytes
from lineas.maps import AffineMap
from lineas.models.frozen import frozen
from lineas.prompts import described
from lineas.sites import Pooling, Site, as_pooling
from lineas.stamp import stamp
from lineas.steering import steer


@undisturbed
def learn(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    method: Method | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    max_length: int = 128,
    pooling: Pooling = "mean",
    memory: int | str | None = None,
    progress: bool | Progress = True,
    start: Intervention | None = None,
    within_support: bool = False,
    on: Intervention | None = None,
) -> Intervention:
    """Learn an intervention that carries the distribution of the source's activations onto the target's.

    Args:
        model: what to steer, such as `lineas.load(...)`.
        source: at least 2 prompts of the behaviour to leave.
        target: at least 2 prompts of the behaviour to reach; neither paired nor equal in number.
        method: how: `LinEAS()`, the default, or one of the others, or your own (see `lineas.learning.fitting.Method`).
        sites: a regular expression over module names, or several; by default those of the method, which for LinEAS are
            the norm before the MLP in every block; in images, for every method, all norms of the denoiser.
        seed: of everything random in it; recorded.
        max_length: tokens of a prompt; the rest is cut, with a warning that counts the prompts.
        pooling: how the tokens or pixels of a prompt become one activation, [d]: their "mean", or the "max" of each
            neuron, which sees what fills a small part of a picture or few words of a text. AurA always takes the
            largest.
        memory: what learning may take beside the weights, such as "8GiB" or a number of bytes; by default half of
            what is free. With less of it the same is computed in smaller parts.
        progress: False for silence, or a function of (steps done, steps in all, cost).
        start: LinEAS alone: maps to begin with instead of the identity, such as those of a neighbouring gamma.
        within_support: LinEAS alone: neurons that `start` leaves as they are stay so; with gamma 0 that refits the
            support that a penalty has chosen.
        on: what is in place on both sides meanwhile, so that the new maps account for it; together they are
            `on.then(learned)`.

    Raises:
        LineasError: for too few prompts, no matching site, a memory that is too small, or a cost that is not finite.
    """
    method = LinEAS() if method is None else method
    pooling = as_pooling(pooling)
    allowed = None if memory is None else as_bytes(memory)
    if start is not None and not isinstance(method, LinEAS):
        raise LineasError(f"only LinEAS begins with given maps; {type(method).__name__} takes no start.")
    if on is not None:
        on.check_affine("learned on top of, as the two could not be put together")
    if within_support and start is None:
        raise LineasError("within_support keeps to the neurons of a start; give one.")
    chosen = model.sites(sites) if sites is not None else model.default_sites(method.default_sites)
    check_sides(source, target)
    for side, prompts in (("source", source), ("target", target)):
        warn_if_cut(model.batch(prompts, max_length), f"{len(prompts)} {side} prompts")
    bar = tqdm(desc=type(method).__name__, disable=progress is not True)

    reported = 0

    def report(done: int, steps: int, cost: float) -> None:
        nonlocal reported
        bar.total = steps
        bar.update(done - reported)
        reported = done
        bar.set_postfix(cost=f"{cost:.4g}")
        if callable(progress):
            progress(done, steps, cost)

    settings = {one.name: getattr(method, one.name) for one in fields(method)}
    begin = None if start is None else _on_sites(start, chosen, model.network)
    task = Task(model, source, target, chosen, seed, max_length, pooling, allowed, report, begin, within_support)
    with bar, frozen(model.network), nullcontext() if on is None else steer(model, on):
        fit = method.fit(task)
        if not reported:  # a method without steps
            report(1, 1, fit.costs[-1])
    wrong = [name for name, m in fit.maps.items() if not bool((m.scale.isfinite() & m.shift.isfinite()).all())]
    if wrong:
        raise LineasError(
            f"the map at {wrong[0]} is not finite, so nothing was learned; the activations there overflow in "
            f"{next(model.network.parameters()).dtype}, take bfloat16 or float32, or leave the site out."
        )
    chosen = [site for site in chosen if site.name in fit.maps]
    maps = {site.name: _stored(fit.maps[site.name]) for site in chosen}
    facts: dict[str, Any] = {
        "method": {"name": type(method).__name__, **settings, **fit.settings},
        "steps_done": len(fit.costs),
        "seed": seed,
        "max_length": max_length,
        "pooling": pooling,
        **({} if start is None else {"start": {"facts": start.facts, "within_support": within_support}}),
        **({} if on is None else {"on": on.facts}),
        "dtype": str(next(model.network.parameters()).dtype).removeprefix("torch."),
        **model.facts,
        "data": {"source": described(source), "target": described(target)},
        "cost": fit.costs,
        "folds": {site.name: folding(model.network, site) for site in chosen},
        **stamp(),
    }
    base = BaseModel.of(model.network, model.name, model.revision)
    return Intervention(maps, {site.name: site for site in chosen}, base, facts)


def check_sides(source: Sequence[str], target: Sequence[str]) -> None:
    """Refuse prompts that are no distribution; `learn` calls it, and may be spared a model that is loaded in vain.

    Raises:
        LineasError: when a side is one string or has fewer than 2 prompts.
    """
    for side, prompts in (("source", source), ("target", target)):
        if isinstance(prompts, str):
            raise LineasError(f"the {side} is one string; give a list of prompts.")
        if len(prompts) < 2:
            raise LineasError(f"the {side} has {len(prompts)} prompt; a distribution needs at least 2 prompts a side.")


def _on_sites(start: Intervention, sites: Sequence[Site], network: nn.Module) -> dict[str, AffineMap]:
    """The maps to begin with.

    Raises:
        LineasError: when they are gated, or belong to another network, or to sites that are not learned.
    """
    start.check_affine("a start")
    start.check_fits(network)
    known = {site.name for site in sites}
    other = [name for name, map_ in start.maps.items() if name not in known and not map_.is_identity()]
    if other:
        raise LineasError(f"the start has a map at {other[0]}, which is none of the {len(known)} sites to learn.")
    return {name: map_ for name, map_ in start.maps.items() if name in known}


def _stored(map_: AffineMap) -> AffineMap:
    return AffineMap(map_.scale.float().cpu(), map_.shift.float().cpu())


def drawn_from(learned: Intervention, files: Mapping[str, str], samples: int | None) -> Intervention:
    """The same with the files of its prompts among its facts, so that `lineas gate`, for one, reads them again.

    Args:
        learned: what `learn` gave.
        files: by side, where it was read.
        samples: that were drawn of each; None for all.
    """
    told = learned.facts["data"]
    data = {side: {"file": files[side], **told[side]} if side in files else told[side] for side in told}
    return learned.with_facts(data=data, samples=samples)
