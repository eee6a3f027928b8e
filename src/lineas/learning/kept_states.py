"""Kept hidden states: the blocks before the first map run once for each part, since nothing changes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.learning.capture import Model, capture_part
from lineas.models.samples import Part, Samples
from lineas.modules import blocks
from lineas.sites import Site
from lineas.steering import contexts


class KeptStates:
    """A model that runs given parts from the block of the first site on, after the first pass over each.

    The result is the same to the bit: the states that enter that block do not depend on the maps. It is tried once, on
    one prompt, whether the network computes the same so; if not, every pass runs whole.

    Args:
        model: model to run; all else is as in this model.
        samples: prompts of the model; the shortest is tried.
        sites: sites whose maps change between the passes.
        parts: parts whose states are kept; other parts run whole.
        memory: largest number of bytes of the states; the parts that exceed it run whole.
    """

    def __init__(
        self, model: Model, samples: Samples[Any], sites: Sequence[Site], parts: Sequence[Part], memory: int
    ) -> None:
        self._model, self._left = model, memory
        self._parts = {id(part): part for part in parts}
        self._states: dict[int, Any] = {}
        self._before = blocks_before(model.network, sites) if samples.ids else []
        if self._before and not self._same(samples, sites):
            self._before = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, part: Any) -> None:
        """Run a part; hooks read the activations."""
        with self._shortened(part):
            self._model.run(part)

    def predict(self, part: Any) -> torch.Tensor:
        """Return the predictions for a part."""
        with self._shortened(part):
            return self._model.predict(part)

    @contextmanager
    def _shortened(self, part: Part) -> Iterator[None]:
        """Leave out the first blocks within the block, or keep their result."""
        if not self._before or id(part) not in self._parts:
            yield
        elif id(part) in self._states:
            state = self._states[id(part)]
            with contexts.replaced(self._before, lambda block: lambda *args, **kwargs: state):
                yield
        else:
            results: list[Any] = []

            def keeping(block: nn.Module) -> Callable[..., Any]:
                plain = block.forward

                def forward(*args: Any, **kwargs: Any) -> Any:
                    results.append(plain(*args, **kwargs))
                    return results[-1]

                return forward

            try:
                with contexts.replaced(self._before[-1:], keeping):
                    yield
            finally:  # also where reading breaks off at the last site
                if len(results) == 1 and (size := _bytes(results[0])) <= self._left:
                    self._states[id(part)] = results[0]
                    self._left -= size

    @torch.no_grad()
    def _same(self, samples: Samples[Any], sites: Sequence[Site]) -> bool:
        """Return whether a shortened pass over one prompt gives the same predictions, or activations without them."""
        shortest = min(samples.prompts, key=len)
        (part,) = self._model.samples([shortest], samples.longest).batch().parts
        self._parts[id(part)] = part
        with suppress(Exception):  # a network that cannot run so runs whole
            try:
                once, again = self.predict(part), self.predict(part)
            except LineasError:  # it predicts nothing
                once, again = (self._activations(part, sites) for _ in range(2))
            return id(part) in self._states and torch.equal(once, again)
        return False

    def _activations(self, part: Part, sites: Sequence[Site]) -> torch.Tensor:
        return torch.cat(list(capture_part(cast(Model, self), part, sites).values()), -1)


def keeping_states(
    model: Model, samples: Samples[Any], sites: Sequence[Site], parts: Sequence[Part], memory: int
) -> Model:
    """Return a model that keeps the states before the first site; the arguments are those of `KeptStates`."""
    return cast(Model, KeptStates(model, samples, sites, parts, memory))


def blocks_before(network: nn.Module, sites: Sequence[Site]) -> list[nn.Module]:
    """Return the blocks before the first one with a site; none if a site is in no block."""
    named = blocks(network)
    places = [[i for i, (name, _) in enumerate(named) if f"{site.module}.".startswith(f"{name}.")] for site in sites]
    return [block for _, block in named[: min((place[0] for place in places), default=0)]] if all(places) else []


def _bytes(state: Any) -> int:
    """Return the bytes of a block's result, a tensor or several."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    return sum(map(_bytes, state)) if isinstance(state, (tuple, list)) else 0
