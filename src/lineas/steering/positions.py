"""Positions: which row and which column of a text every activation belongs to, whatever the current forward's shape."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import update_wrapper
from threading import RLock
from types import MethodType
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.steering import contexts

Tokens = Literal["all", "prompt", "generated", "answer"]
"""Which tokens are steered: all; those given to `generate`; those that it added; or those whose next token it adds,
from the last one of the prompt on."""
_lock = RLock()


@runtime_checkable
class HasPositions(Protocol):
    """A network that knows better than its forward pass tells which rows and columns there are."""

    def positions(self, tokens: str) -> Any:
        """Return what stands in for `Positions`."""
        ...


@dataclass
class Place:
    """The place of one forward pass in its texts.

    Args:
        prompts: how many were given to `generate`; None for a row each.
        length: how many columns are prompt: a number, or one a row `[batch]`; None where it is not known.
        shape: rows and columns of the pass; None where they are not known.
        past: columns that the cache holds already.
    """

    prompts: int | None = None
    length: int | torch.Tensor | None = None
    shape: tuple[int, int] | None = None
    past: int = 0

    def chosen(self, tokens: Tokens) -> torch.Tensor | None:
        """Which tokens are meant: None for all, else bool `[batch or 1, tokens]`."""
        if tokens == "all":
            return None
        if self.shape is None:
            raise LineasError(f"tokens={tokens!r} needs the whole network to be called, not only a part of it.")
        columns = torch.arange(self.past, self.past + self.shape[1])
        # Outside generate, and with no length given, a text that is read is all prompt.
        length = self.past + self.shape[1] if self.length is None else self.length
        length = torch.as_tensor(length).cpu().view(-1, 1)
        if tokens == "answer":
            return columns >= length - 1  # [batch or 1, tokens]
        return columns < length if tokens == "prompt" else columns >= length

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """The activation as `[batch, tokens, d]`, also in layers that flatten it to `[batch * tokens, d]`."""
        if self.shape is not None and z.dim() == 2 and z.shape[0] == self.shape[0] * self.shape[1]:
            return z.view(*self.shape, z.shape[-1])
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


class Positions:
    """Follows a network's forward passes: batch rows, columns counted from the start of the text, prompt length.

    A column is "prompt" when it lies before `prompt_length`, the width of what was given to `generate`. Columns are
    counted through the KV cache, so chunked prefill and several tokens a step (assisted decoding) come out right.
    A prompt length belongs to the thread or task that set it, or that runs `generate`.

    Args:
        network: the root module, whose `generate`, where it has one, tells the prompt length.
        tokens: which ones are meant.

    Attributes:
        roots: the modules before whose forward passes `begin` is to be called.
        shared: the latest place, of whatever thread; a compiled network reads no other.
    """

    def __init__(self, network: nn.Module, tokens: Tokens = "all") -> None:
        self.roots: list[nn.Module] = [network]
        self.shared = Place()
        self._network, self._tokens = network, tokens
        self._key = object()
        self._warned = False
        if hasattr(network, "generate"):
            with _lock:
                if not isinstance(network.generate, _Generate):
                    network.__dict__["generate"] = _Generate(network)
                network.generate.followers.append(self)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]

    def remove(self) -> None:
        """Stop following; may be repeated."""
        contexts.drop(self._key)
        with _lock:
            generate = self._network.__dict__.get("generate")
            if isinstance(generate, _Generate) and self in generate.followers:
                generate.followers.remove(self)
                if not generate.followers:
                    self._network.__dict__.pop("generate")
                    self._network.__dict__.update(generate.own)

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """Return how many columns are prompt: a number, one a row `[batch]`, or None where it is not known."""
        return self._known[1]

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._know(self._known[0], None if value is None else _as_lengths(value))

    @property
    def _known(self) -> tuple[int | None, int | torch.Tensor | None]:
        """Return how many prompts there are, and how many columns are prompt, in this thread or task."""
        return contexts.here().get(self._key, (None, None))

    def _know(self, prompts: int | None, length: int | torch.Tensor | None) -> None:
        contexts.put(self._key, (prompts, length))
        self.shared.prompts, self.shared.length = prompts, length

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        """The place of a forward pass that begins with these arguments."""
        if len(args) > 1:  # the cache may be among them
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
        given = kwargs.get("input_ids")
        if given is None:
            given = kwargs.get("inputs_embeds")
        if given is None and args:
            given = args[0]
        shape = (given.shape[0], given.shape[1]) if isinstance(given, torch.Tensor) and given.dim() > 1 else None
        cache: Any = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        self.shared.shape, self.shared.past = shape, past
        if contexts.is_compiling():
            return self.shared
        place = Place(*self._known, shape, past)
        if self._tokens != "all" and not self._warned and place.length is None and past:
            self._warned = True
            warnings.warn(
                f"a forward pass continues a cache, and tokens={self._tokens!r} does not know where the prompt ends, "
                "so all that it reads counts as prompt; set the prompt_length of what steer returned, or call the "
                "network's generate anew, not one that was kept from before it was steered.",
                stacklevel=4,
            )
        return place

    def apart(self) -> Place:
        """The place of an activation of a part of the network that was called alone."""
        return Place(*self._known)

    @contextmanager
    def generating(self, prompts: int, length: int) -> Iterator[None]:
        """Within the block, `generate` continues so many prompts of so many columns."""
        is_known, before = self._key in contexts.here(), self._known
        self._know(prompts, length)
        try:
            yield
        finally:
            self._know(*before)
            if not is_known:  # threads outlive what is steered
                contexts.drop(self._key)


class _Generate:
    """The network's `generate`, which tells those who follow it what it continues; wrapped once for all of them."""

    def __init__(self, network: nn.Module) -> None:
        self.followers: list[Positions] = []
        self.own = {k: v for k, v in network.__dict__.items() if k == "generate"}  # one the user had put there
        self._network, self._original = network, network.generate
        update_wrapper(self, self._original, updated=())  # pyright: ignore[reportArgumentType]

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = next((x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None)
        prompts, length = (1, 1) if given is None else given.shape[:2]  # from nothing it begins with a token of its own
        with ExitStack() as stack:
            for positions in tuple(self.followers):
                stack.enter_context(positions.generating(prompts, length))
            return self._original(inputs, *args, **kwargs)  # pyright: ignore[reportCallIssue]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # a copy of the network generates with its own weights
        own = deepcopy(self.own, memo)
        of_class: Any = type(self._network)
        return own["generate"] if own else MethodType(of_class.generate, memo[id(self._network)])

    def __reduce__(self) -> Any:
        return contexts.Hook().__reduce__()


def check_tokens(tokens: Any) -> None:
    """Refuse what is no choice of tokens.

    Raises:
        LineasError: naming those that there are.
    """
    if not isinstance(tokens, str) or tokens not in get_args(Tokens):
        raise LineasError(f"tokens must be 'all', 'prompt', 'generated' or 'answer', not {tokens!r}.")


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
