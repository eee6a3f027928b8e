"""Positions: which row and which column of a text every activation belongs to, whatever the current forward's shape."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import update_wrapper
from types import MethodType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lineas.errors import LineasError


@runtime_checkable
class HasPositions(Protocol):
    """A network that knows better than its forward pass tells which rows and columns there are."""

    def positions(self, tokens: str) -> Any:
        """What stands in for `Positions`, with `prompt_length`, `chosen`, `by_row`, `spread` and `remove`."""
        ...


class Positions:
    """Follows a network's forward passes: batch rows, columns counted from the start of the text, prompt length.

    A column is "prompt" when it lies before `prompt_length`, the width of what was given to `generate`. Columns are
    counted through the KV cache, so chunked prefill and several tokens a step (assisted decoding) come out right.

    Args:
        network: the root module, whose arguments are read before each forward pass, and whose `generate`, where it has
            one, tells the prompt length.
    """

    def __init__(self, network: nn.Module) -> None:
        self.prompts: int | None = None
        self._prompt_length: int | torch.Tensor | None = None
        self._network = network
        self._shape: tuple[int, int] | None = None
        self._past = 0
        self._handle: Any = network.register_forward_pre_hook(self._before, with_kwargs=True)
        if hasattr(network, "generate"):
            if not isinstance(network.generate, _Generate):
                network.__dict__["generate"] = _Generate(network)
            network.generate.followers.append(self)  # type: ignore[union-attr]

    def remove(self) -> None:
        """Stop following; may be repeated."""
        self._handle.remove()
        generate = self._network.__dict__.get("generate")
        if isinstance(generate, _Generate) and self in generate.followers:
            generate.followers.remove(self)
            if not generate.followers:
                self._network.__dict__.pop("generate")
                self._network.__dict__.update(generate.own)

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """How many columns are prompt: a number, one a row `[batch]`, or None where it is not known."""
        return self._prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._prompt_length = None if value is None else _as_lengths(value)

    def chosen(self, tokens: str) -> torch.Tensor | None:
        """Which tokens of the current forward are meant: None for all, else bool `[batch or 1, tokens]`."""
        if tokens == "all":
            return None
        if self._shape is None:
            raise LineasError(f"tokens={tokens!r} needs the whole network to be called, not only a part of it.")
        columns = torch.arange(self._past, self._past + self._shape[1])
        # Outside generate, and with no length given, a text that is read is all prompt.
        length = self._past + self._shape[1] if self.prompt_length is None else self.prompt_length
        in_prompt = columns < torch.as_tensor(length).cpu().view(-1, 1)  # [batch or 1, tokens]
        return in_prompt if tokens == "prompt" else ~in_prompt

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """The activation as `[batch, tokens, d]`, also in layers that flatten it to `[batch * tokens, d]`."""
        if self._shape is not None and z.dim() == 2 and z.shape[0] == self._shape[0] * self._shape[1]:
            return z.view(*self._shape, z.shape[-1])
        return z

    def spread(self, x: torch.Tensor, n: int, what: str = "strengths") -> torch.Tensor:
        """One entry a prompt as one a row of the activation, which has several (beams, samples) of a prompt.

        Args:
            x: `[prompts, ...]` or `[1, ...]`.
            n: rows of the activation.
            what: x is, for the message.

        Raises:
            LineasError: when x has neither as many entries as there are prompts, nor one.
        """
        prompts = self.prompts or n
        if x.shape[0] not in (1, prompts) or n % prompts:
            raise LineasError(f"{x.shape[0]} {what} were given for a batch of {prompts} rows; give one a row.")
        return x.repeat_interleave(n // x.shape[0], dim=0)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) > 1:  # the cache may be among them
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
        given = kwargs.get("input_ids")
        if given is None:
            given = kwargs.get("inputs_embeds")
        if given is None and args:
            given = args[0]
        self._shape = (given.shape[0], given.shape[1]) if isinstance(given, torch.Tensor) and given.dim() > 1 else None
        cache: Any = kwargs.get("past_key_values")
        self._past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0

    @contextmanager
    def generating(self, given: Any) -> Iterator[None]:
        """Within the block, `generate` continues `given` `[batch, columns, ...]`."""
        before = self.prompts, self._prompt_length
        if given is not None:
            self.prompts, self._prompt_length = given.shape[0], given.shape[1]
        try:
            yield
        finally:
            self.prompts, self._prompt_length = before


class _Generate:
    """The network's `generate`, which tells those who follow it what it continues; wrapped once for all of them."""

    def __init__(self, network: nn.Module) -> None:
        self.followers: list[Positions] = []
        self.own = {k: v for k, v in network.__dict__.items() if k == "generate"}  # one the user had put there
        self._network, self._original = network, network.generate
        update_wrapper(self, self._original, updated=())  # type: ignore[arg-type]

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = next((x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None)
        with ExitStack() as stack:
            for positions in self.followers:
                stack.enter_context(positions.generating(given))
            return self._original(inputs, *args, **kwargs)  # type: ignore[operator]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # a copy of the network generates with its own weights
        own = deepcopy(self.own, memo)
        of_class: Any = type(self._network)
        return own["generate"] if own else MethodType(of_class.generate, memo[id(self._network)])


def _as_lengths(value: Any) -> int | torch.Tensor:
    error = LineasError(f"prompt_length is a number of columns, 0 or more, or one a row [batch], not {value!r}.")
    try:
        given = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise error from None
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not whole or given.dim() > 1 or not given.numel() or bool((given < 0).any()):
        raise error
    return given.clone() if given.dim() else int(given)
