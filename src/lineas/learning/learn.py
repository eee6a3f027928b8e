"""`learn`: the task checked, a method run, and its maps made an intervention with the facts it came from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from lineas.checks import SEED, TOKENS, as_bytes, as_texts
from lineas.errors import LineasError, first_line
from lineas.folding.slots import folding
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import AffineMap
from lineas.intervention.model_identity import ModelIdentity, identifying_module
from lineas.learning.capture import Model, warn_if_cut
from lineas.learning.lineas import LinEAS
from lineas.learning.method import Method, Progress, Task, overflown
from lineas.models.frozen import frozen
from lineas.models.trial import outputs
from lineas.modules import is_linear, is_norm, type_name, weights_type
from lineas.printable import shortened
from lineas.prompts import described
from lineas.sites import Pooling, Site, as_pooling
from lineas.steering.exclusive import exclusively
from lineas.steering.steer import steer
from lineas.versions import stamp

SHORT = 16
"""Tokens of each of two prompts on which maps are tried once they are learned."""


@exclusively
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

    Interrupted (Ctrl-C) after a step it warns and gives what was learned so far, marked as such: `unfinished` and the
    fact `interrupted` say how many steps of how many; before the first step it raises KeyboardInterrupt.

    Args:
        model: what to steer, such as `lineas.load(...)`.
        source: at least 2 prompts of the behaviour to leave.
        target: at least 2 prompts of the behaviour to reach; neither paired nor equal in number.
        method: how: `LinEAS()`, the default, or one of the others, or your own (see `lineas.learning.method.Method`).
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
    _check_kinds(model, method, start, on)
    source, target = as_texts("the source", source), as_texts("the target", target)
    sites = sites if sites is None or isinstance(sites, str) else as_texts("sites", sites, "names of modules")
    seed, max_length = SEED.check("seed", seed), TOKENS.check("max_length", max_length)
    pooling = as_pooling(pooling)
    allowed = None if memory is None else as_bytes(memory)
    if start is not None and not isinstance(method, LinEAS):
        raise LineasError(f"only LinEAS begins with given maps; {type(method).__name__} takes no start.")
    if on is not None:
        on.check_affine("learned on top of, as the two could not be put together")
    if within_support and start is None:
        raise LineasError(
            "--within-support (within_support=True) keeps to the neurons of a start; give one with --start (start=...)."
        )
    chosen = model.sites(sites) if sites is not None else model.default_sites(method.default_sites)
    check_sides(source, target)
    samples = {side: model.samples(prompts, max_length) for side, prompts in (("source", source), ("target", target))}
    for side, encoded in samples.items():
        warn_if_cut(encoded, f"{side} ")
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
    known = {  # all that can fail is asked before the work
        "dtype": type_name(weights_type(model.network)),
        **model.facts,
        "data": {"source": described(source), "target": described(target)},
        "folds": _folds(model.network, chosen),
        **stamp(),
    }
    base = _base(model)
    task = Task(
        model,
        **samples,
        sites=chosen,
        seed=seed,
        pooling=pooling,
        memory=allowed,
        progress=report,
        start=begin,
        within=within_support,
    )
    with bar, frozen(model.network), nullcontext() if on is None else steer(model, on):
        fit = method.fit(task)
        if not reported and fit.costs:  # a method without steps
            report(1, 1, fit.costs[-1])
    wrong = [name for name, m in fit.maps.items() if not bool((m.scale.isfinite() & m.shift.isfinite()).all())]
    if wrong:
        raise overflown(wrong[0], model.network)
    if not all(map(math.isfinite, fit.costs)):
        raise LineasError(
            "the cost with the maps in place is not finite, so nothing was learned: they move the activations too far; "
            "take smaller steps, or a smaller alpha with ITI-c."
        )
    chosen = [site for site in chosen if site.name in fit.maps]
    maps = {site.name: _stored(fit.maps[site.name]) for site in chosen}
    facts: dict[str, Any] = {
        "method": {"name": type(method).__name__, **settings, **fit.settings},
        "steps_done": len(fit.costs),
        **({} if fit.of is None else {"interrupted": {"done": len(fit.costs), "of": fit.of}}),
        "seed": seed,
        "max_length": max_length,
        "pooling": pooling,
        **({} if start is None else {"start": {"facts": start.facts, "within_support": within_support}}),
        **({} if on is None else {"on": on.facts}),
        **known,
        "cost": fit.costs,
        "folds": {site.name: known["folds"][site.name] for site in chosen},
    }
    learned = Intervention(maps, {site.name: site for site in chosen}, base, facts)
    if learned.support() == 0 and not getattr(method, "gamma", 0):  # a penalty may well leave nothing
        warnings.warn(
            "nothing was learned: no neuron is changed, since source and target activate these sites alike; are they "
            "the same prompts, or cut after the same words?",
            stacklevel=2,
        )
    return learned if _moves(model, learned, source, max_length) else learned.with_facts(moves_output=False)


def _folds(network: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """By site name, how a map there would fold; "unknown" where that cannot be asked."""

    def of(site: Site) -> str:
        try:
            return folding(network, site)
        except Exception:  # it is nice to know, and no reason not to learn
            return "unknown"

    return {site.name: of(site) for site in sites}


def _base(model: Model) -> ModelIdentity | None:
    """Return what the maps will belong to; None, with a warning, where a network has no fingerprint."""
    try:
        return ModelIdentity.of(model.network, model.name, model.revision)
    except Exception as error:  # whatever a class of others does with its weights
        warnings.warn(
            f"no fingerprint of {model.name} could be taken ({first_line(error)}), so the intervention will fit every "
            "network of its shape.",
            stacklevel=3,
        )
        return None


def _moves(model: Model, learned: Intervention, source: Sequence[str], max_length: int) -> bool:
    """Warn where maps move nothing that a network puts out, as at a router's gate; True where they do or may.

    Tried on a little text first, and on all prompts before anything is said. Norms and linears are not asked: they put
    out one tensor, which is what the network goes on with; nor is a pipeline, as drawing takes long.
    """
    modules = [model.network.get_submodule(site.module) for site in learned.sites.values()]
    plain_ones = all(is_norm(module) or is_linear(module) for module in modules)
    if learned.is_identity() or plain_ones or identifying_module(model.network) is not model.network:
        return True
    try:
        for prompts, length in ((source[:2], min(max_length, SHORT)), (source, max_length)):
            plain = outputs(model, prompts, length)
            with steer(model.network, learned):
                steered = outputs(model, prompts, length)
            if plain is None or steered is None or not torch.equal(plain, steered):
                return True
    except Exception:  # what was learned is not lost for it
        return True
    names = [name for name, map_ in learned.maps.items() if not map_.is_identity()]
    listed = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    warnings.warn(
        f"the maps at {listed} move nothing: no later module reads that output; learn at other sites.", stacklevel=3
    )
    return False


def _check_kinds(model: Any, method: Any, start: Any, on: Any) -> None:
    """Refuse arguments that are of another kind altogether.

    Raises:
        LineasError: naming what is expected.
    """
    if not all(hasattr(model, name) for name in ("network", "batch", "sites", "run")):
        raise LineasError(
            f"a {type(model).__name__} cannot be learned on as it is; wrap it in lineas.TextModel, or a pipeline of "
            "diffusers in lineas.ImageModel."
        )
    if isinstance(method, type) or not callable(getattr(method, "fit", None)):
        given = method.__name__ if isinstance(method, type) else shortened(repr(method))
        raise LineasError(f"the method is an object such as lineas.LinEAS(), not {given}.")
    for name, given in (("start", start), ("on", on)):
        if given is not None and not isinstance(given, Intervention):
            raise LineasError(
                f"{name} must be an intervention, such as lineas.Intervention.load(...), not {shortened(repr(given))}."
            )


def check_sides(source: Sequence[str], target: Sequence[str]) -> None:
    """Refuse prompts that are no distribution; `learn` calls it, and may be spared a model that is loaded in vain.

    Raises:
        LineasError: when a side is no list of texts or has fewer than 2 prompts.
    """
    for side, prompts in (("source", source), ("target", target)):
        if isinstance(prompts, Iterator):
            raise LineasError(f"the {side} can be gone through only once, by this check; give a list of prompts.")
        count = len(as_texts(f"the {side}", prompts))
        if count < 2:
            raise LineasError(f"the {side} has {count} prompt; a distribution needs at least 2 prompts a side.")


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
