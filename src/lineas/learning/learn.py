"""`learn`: check the task, run the method, and return its maps as an intervention with the facts about them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
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
from lineas.learning.method import Method, Progress, Task, overflow_error, settings_of
from lineas.learning.neutral import measures_damage, neutral_samples, warn_of_budget
from lineas.models.frozen import frozen
from lineas.models.trial import outputs
from lineas.modules import is_linear, is_norm, type_name, weights_type
from lineas.printable import shortened
from lineas.prompts import described
from lineas.sites import Pooling, Site, as_pooling, upper_sites
from lineas.steering.exclusive import exclusively
from lineas.steering.steer import steer
from lineas.versions import stamp

SHORT = 16
"""Tokens of each of the two prompts on which learned maps are tried."""


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
    neutral: Sequence[str] | None = None,
) -> Intervention:
    """Learn an intervention that moves the distribution of the source's activations onto the target's.

    Ctrl-C after the first step ends learning with a warning. The intervention then has the maps learned so far, and its
    `unfinished` says how many steps of how many were done.

    Args:
        model: model to steer, such as `lineas.load(...)`.
        source: at least 2 prompts of the behaviour to leave.
        target: at least 2 prompts of the behaviour to reach; neither paired with the source nor equal in number.
        method: method of learning; default `LinEAS()`. Your own is possible too (see `lineas.learning.method.Method`).
        sites: regular expression over module names, or several. None takes the method's own sites: for LinEAS the norm
            before the MLP, in the upper two thirds of the blocks if the optimizer is "natural", in every block with
            the others; for images, with every method, all norms of the denoiser.
        seed: seed of everything random; it is recorded.
        max_length: largest number of tokens of a prompt; the rest is cut, with a warning that counts the prompts.
        pooling: how the tokens or pixels of a prompt become one activation, `[d]`. "mean" averages them. "max" takes
            each neuron's largest, which sees a few words of a text or a small part of a picture. AurA always uses it.
        memory: memory for learning beside the weights, such as "8GiB" or a number of bytes; None for half of the free
            memory. With less memory the same result is computed in smaller parts.
        progress: True for a progress bar, False for none, or a function of (steps done, steps in all, cost).
        start: maps to begin with instead of the identity, such as those of a neighbouring gamma (LinEAS only).
        within_support: whether neurons that `start` does not change stay unchanged (LinEAS only). With gamma 0 this
            learns again on the support that a penalty has chosen.
        on: intervention that is in place on both sides while the new maps are learned. To use both, take
            `on.then(learned)`.
        neutral: prompts on which the model should stay as it is, for the optimizer "natural", which measures its steps
            on them. None takes 32 sentences that ship with lineas; for images the target.

    Returns:
        The intervention that was learned.

    Raises:
        LineasError: for too few prompts, no matching site, too little memory, or a cost that is not finite.
        KeyboardInterrupt: when it is interrupted before the first step.
    """
    method = LinEAS() if method is None else method
    _check_kinds(model, method, start, on)
    source, target = as_texts("the source", source), as_texts("the target", target)
    sites = sites if sites is None or isinstance(sites, str) else as_texts("sites", sites, "names of modules")
    seed, max_length = SEED.check("seed", seed), TOKENS.check("max_length", max_length)
    pooling = as_pooling(pooling)
    limit = None if memory is None else as_bytes(memory)
    if start is not None and not isinstance(method, LinEAS):
        raise LineasError(f"only LinEAS begins with given maps; {type(method).__name__} takes no start.")
    if on is not None:
        on.check_affine("learned on top of, as the two could not be put together")
    if within_support and start is None:
        raise LineasError(
            "--within-support (within_support=True) keeps to the neurons of a start; give one with --start (start=...)."
        )
    check_sides(source, target)
    encoded = model.samples(source, max_length), model.samples(target, max_length)
    if isinstance(method, LinEAS):
        method = method.resolved(for_texts=bool(encoded[0].ids))
    chosen = model.sites(sites) if sites is not None else model.default_sites(method.default_sites)
    if sites is None and start is None and measures_damage(method):
        chosen = upper_sites(model.network, chosen)
    warn_if_cut(encoded[0], "source ")
    warn_if_cut(encoded[1], "target ")
    encoded_neutral = neutral_samples(model, method, neutral, encoded[1], max_length)
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

    settings = settings_of(method)
    begin = None if start is None else _on_sites(start, chosen, model.network)
    environment = {  # before the work, since some of it can fail
        "dtype": type_name(weights_type(model.network)),
        **model.facts,
        "data": {
            "source": described(source),
            "target": described(target),
            **({} if encoded_neutral is None else {"neutral": described(encoded_neutral.prompts)}),
        },
        "folds": _folds(model.network, chosen),
        **stamp(),
    }
    base = _base(model)
    task = Task(model, *encoded, chosen, seed, pooling, limit, report, begin, within_support, encoded_neutral)
    with bar, frozen(model.network), nullcontext() if on is None else steer(model, on):
        fit = method.fit(task)
        if not reported and fit.costs:  # a method without steps
            report(1, 1, fit.costs[-1])
    wrong = [name for name, m in fit.maps.items() if not bool((m.scale.isfinite() & m.shift.isfinite()).all())]
    if wrong:
        raise overflow_error(wrong[0], model.network)
    if not all(map(math.isfinite, fit.costs)):
        raise LineasError(
            "the cost with the maps in place is not finite, so nothing was learned: they move the activations too far; "
            "take smaller steps, or a smaller alpha with ITI-c."
        )
    chosen = [site for site in chosen if site.name in fit.maps]
    fitted = [(site.name, fit.maps[site.name]) for site in chosen]
    maps = {name: AffineMap(map_.scale.float().cpu(), map_.shift.float().cpu()) for name, map_ in fitted}
    facts: dict[str, Any] = {
        "method": {**settings, **fit.settings},
        "steps_done": len(fit.costs),
        **({} if fit.of is None else {"interrupted": {"done": len(fit.costs), "of": fit.of}}),
        "seed": seed,
        "max_length": max_length,
        "pooling": pooling,
        **({} if start is None else {"start": {"facts": start.facts, "within_support": within_support}}),
        **({} if on is None else {"on": on.facts}),
        **environment,
        "cost": fit.costs,
        **({} if fit.end is None else {"cost_after": fit.end}),
        **({} if fit.divergence is None else {"divergence": fit.divergence}),
        "folds": {site.name: environment["folds"][site.name] for site in chosen},
    }
    learned = Intervention(maps, {site.name: site for site in chosen}, base, facts)
    if learned.support() == 0 and not getattr(method, "gamma", 0):  # a penalty may well leave nothing
        warnings.warn(
            "nothing was learned: no neuron is changed, since source and target activate these sites alike; are they "
            "the same prompts, or cut after the same words?",
            stacklevel=2,
        )
    elif fit.divergence is not None and fit.of is None:
        warn_of_budget(fit, fit.divergence, getattr(method, "divergence", 0.0))
    return learned if _moves(model, learned, source, max_length) else learned.with_facts(moves_output=False)


def _folds(network: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """Return by site name how a map there would fold; "unknown" where that fails."""
    folds = {site.name: "unknown" for site in sites}
    for site in sites:
        with suppress(Exception):  # learning does not need it
            folds[site.name] = folding(network, site)
    return folds


def _base(model: Model) -> ModelIdentity | None:
    """Return the identity of the model; None, with a warning, where no fingerprint can be computed."""
    try:
        return ModelIdentity.of(model.network, model.name, model.revision)
    except Exception as error:  # of a foreign class
        warnings.warn(
            f"no fingerprint of {model.name} could be taken ({first_line(error)}), so the intervention will fit every "
            "network of its shape.",
            stacklevel=3,
        )
        return None


def _moves(model: Model, learned: Intervention, source: Sequence[str], max_length: int) -> bool:
    """Return False, with a warning, if the maps change nothing in the network's output, as at a router's gate."""
    modules = [model.network.get_submodule(site.module) for site in learned.sites.values()]
    always_read = all(is_norm(module) or is_linear(module) for module in modules)  # their one output is used
    is_pipeline = identifying_module(model.network) is not model.network  # drawing takes long
    if learned.is_identity() or always_read or is_pipeline:
        return True
    try:
        for prompts, length in ((source[:2], min(max_length, SHORT)), (source, max_length)):
            plain = outputs(model, prompts, length)
            with steer(model.network, learned):
                steered = outputs(model, prompts, length)
            if plain is None or steered is None or not torch.equal(plain, steered):
                return True
    except Exception:  # a failed trial must not lose the learned maps
        return True
    names = [name for name, map_ in learned.maps.items() if not map_.is_identity()]
    listed = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    warnings.warn(
        f"the maps at {listed} move nothing: no later module reads that output; learn at other sites.", stacklevel=3
    )
    return False


def _check_kinds(model: Any, method: Any, start: Any, on: Any) -> None:
    """Refuse arguments of a wrong type."""
    members = [name for name in (*Model.__annotations__, *vars(Model)) if not name.startswith("_")]
    if not all(hasattr(model, name) for name in members):
        raise LineasError(
            f"a {type(model).__name__} cannot be learned on as it is; wrap it in lineas.TextModel, or a pipeline of "
            "diffusers in lineas.ImageModel."
        )
    if isinstance(method, type) or not callable(getattr(method, "fit", None)):
        name = method.__name__ if isinstance(method, type) else shortened(repr(method))
        raise LineasError(f"the method is an object such as lineas.LinEAS(), not {name}.")
    for name, value in (("start", start), ("on", on)):
        if value is not None and not isinstance(value, Intervention):
            raise LineasError(
                f"{name} must be an intervention, such as lineas.Intervention.load(...), not {shortened(repr(value))}."
            )


def check_sides(source: Sequence[str], target: Sequence[str]) -> None:
    """Refuse prompts from which nothing can be learned; call it before loading a model, to fail early."""
    for side, prompts in (("source", source), ("target", target)):
        if isinstance(prompts, Iterator):
            raise LineasError(f"the {side} is an iterator, which can be read only once; give a list of prompts.")
        count = len(as_texts(f"the {side}", prompts))
        if count < 2:
            raise LineasError(f"the {side} has {count} prompt; a distribution needs at least 2 prompts a side.")


def _on_sites(start: Intervention, sites: Sequence[Site], network: nn.Module) -> dict[str, AffineMap]:
    """Return the maps to begin with, by site name."""
    start.check_affine("a start")
    start.check_fits(network)
    names = {site.name for site in sites}
    other = [name for name, map_ in start.maps.items() if name not in names and not map_.is_identity()]
    if other:
        raise LineasError(f"the start has a map at {other[0]}, which is none of the {len(names)} sites to learn.")
    return {name: map_ for name, map_ in start.maps.items() if name in names}


def drawn_from(learned: Intervention, files: Mapping[str, str], samples: int | None) -> Intervention:
    """Return the intervention with the files that `lineas gate` reads, and the prompts drawn from each (None: all)."""
    data = {side: {"file": files[side], **one} if side in files else one for side, one in learned.facts["data"].items()}
    return learned.with_facts(data=data, samples=samples)
