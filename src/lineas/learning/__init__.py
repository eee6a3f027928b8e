"""Learning: from prompts to an intervention; one method, one file."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from tqdm.auto import tqdm

from lineas.base import BaseModel
from lineas.errors import LineasError
from lineas.folds import folding
from lineas.intervention import Intervention
from lineas.learning.capture import Model
from lineas.learning.lineas import LinEAS, Progress
from lineas.learning.memory import as_bytes

__all__ = ["LinEAS", "check_sides", "learn"]


def learn(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    method: LinEAS | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    max_length: int = 128,
    memory: int | str | None = None,
    progress: bool | Progress = True,
) -> Intervention:
    """Learn an intervention that carries the distribution of the source's activations onto the target's.

    Args:
        model: what to steer, such as `lineas.load(...)`.
        source: at least 2 prompts of the behaviour to leave.
        target: at least 2 prompts of the behaviour to reach; neither paired nor equal in number.
        method: how; by default `LinEAS()`.
        sites: a regular expression over module names, or several; by default the norm before the MLP in every block.
        seed: of everything random in it; recorded.
        max_length: tokens of a prompt; the rest is cut, with a warning that counts the prompts.
        memory: what learning may take beside the weights, such as "8GiB" or a number of bytes; by default half of
            what is free. With less of it the same is computed in smaller parts.
        progress: False for silence, or a function of (steps done, steps in all, cost).

    Raises:
        LineasError: for too few prompts, no matching site, a memory that is too small, or a cost that is not finite.
    """
    method = method or LinEAS()
    allowed = None if memory is None else as_bytes(memory)
    chosen = model.sites(sites)
    check_sides(source, target)
    for side, prompts in (("source", source), ("target", target)):
        cut = model.batch(prompts, max_length).truncated
        if cut:
            warnings.warn(f"{cut} of {len(prompts)} {side} prompts were cut at {max_length} tokens.", stacklevel=2)
    bar = tqdm(total=method.steps, desc=type(method).__name__, disable=progress is not True)

    def report(done: int, steps: int, cost: float) -> None:
        bar.update(1)
        bar.set_postfix(cost=f"{cost:.4g}")
        if callable(progress):
            progress(done, steps, cost)

    with bar:
        fit = method.fit(model, source, target, chosen, seed, max_length, allowed, report)
    facts: dict[str, Any] = {
        "method": {"name": type(method).__name__, **asdict(method), "learning_rate": fit.learning_rate},
        "steps_done": len(fit.costs),
        "seed": seed,
        "max_length": max_length,
        "dtype": str(next(model.network.parameters()).dtype).removeprefix("torch."),
        "data": {"source": _described(source), "target": _described(target)},
        "cost": fit.costs,
        "folds": {site.name: folding(model.network, site) for site in chosen},
        "versions": {name: version(name) for name in ("lineas", "torch", "transformers")}
        | {"python": platform.python_version()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    base = BaseModel.of(model.network, model.name, model.revision)
    return Intervention(fit.maps, {site.name: site for site in chosen}, base, facts)


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


def _described(prompts: Sequence[str]) -> dict[str, Any]:
    return {"count": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}
