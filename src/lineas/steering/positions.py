"""Positions: the row and the column in the texts that each activation belongs to, for any shape of forward pass."""

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
"""The tokens that are steered: all, the prompt's, those that `generate` adds ("generated"), or those from which it
predicts a new token ("answer": from the prompt's last token on)."""
_lock = RLock()


@runtime_checkable
class HasPositions(Protocol):
    """A network that computes its rows and columns itself, since its forward pass does not show them."""

    def positions(self, tokens: str) -> Any:
        """Return an object with the methods of `Positions`."""
        ...


@dataclass
class Place:
    """The place of one forward pass in its texts.

    Args:
        prompts: number of prompts given to `generate`; None if each row is a prompt.
        length: number of prompt columns, for all rows or per row `[batch]`; None if unknown.
        shape: number of rows and columns of the pass; None if unknown.
        past: number of columns that are in the cache already.
    """

    prompts: int | None = None
    length: int | torch.Tensor | None = None
    shape: tuple[int, int] | None = None
    past: int = 0

    def chosen(self, tokens: Tokens) -> torch.Tensor | None:
        """Return a mask of the steered tokens, bool `[batch or 1, tokens]`; None for all."""
        if tokens == "all":
            return None
        if self.shape is None:
            raise LineasError(f"tokens={tokens!r} needs the whole network to be called, not only a part of it.")
        columns = torch.arange(self.past, self.past + self.shape[1])
        # Outside generate, and without a given length, the whole text counts as prompt.
        length = self.past + self.shape[1] if self.length is None else self.length
        length = torch.as_tensor(length).cpu().view(-1, 1)
        if tokens == "answer":
            return columns >= length - 1  # [batch or 1, tokens]
        return columns < length if tokens == "prompt" else columns >= length

    def by_row(self, z: torch.Tensor) -> torch.Tensor:
        """Return an activation as `[batch, tokens, d]`, also if a layer has flattened it to `[batch * tokens, d]`."""
        if self.shape is not None and z.dim() == 2 and z.shape[0] == self.shape[0] * self.shape[1]:
            return z.view(*self.shape, z.shape[-1])
        return z

    def repeated(self, x: torch.Tensor, n: int, what: str = "strengths") -> torch.Tensor:
        """Repeat each prompt's entry, `[prompts, ...]` or one for all, for its rows: several with beams or samples."""
        prompts = self.prompts or n
        if x.shape[0] not in (1, prompts) or n % prompts:
            raise LineasError(f"{x.shape[0]} {what} were given for a batch of {prompts} rows; give one per row.")
        return x.repeat_interleave(n // x.shape[0], dim=0)


class Positions:
    """The rows and columns of a network's forward passes, and the length of the prompts.

    Columns are counted from the start of the text, through the KV cache. So chunked prefill and several tokens per step
    (assisted decoding) are correct. A column belongs to the prompt if it is before `prompt_length`, the width of the
    input of `generate`. A prompt length belongs to the thread or task that set it, or that runs `generate`.

    Args:
        network: the root module; its `generate`, if there is one, is wrapped to learn the prompt length.

    Attributes:
        roots: the modules before whose forward passes `begin` must be called.
        shared: the latest place in any thread; compiled networks read this one.
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
        """Unwrap the network's `generate`; does nothing at the second call."""
        contexts.deactivate(self._key)
        with _lock:
            generate = self._network.__dict__.get("generate")
            if isinstance(generate, _Generate) and self in generate.followers:
                generate.followers.remove(self)
                if not generate.followers:
                    self._network.__dict__.pop("generate")
                    self._network.__dict__.update(generate.own)

    @property
    def prompt_length(self) -> int | torch.Tensor | None:
        """The number of prompt columns, for all rows or per row `[batch]`; None if unknown."""
        return self._known[1]

    @prompt_length.setter
    def prompt_length(self, value: int | torch.Tensor | None) -> None:
        self._set_known(self._known[0], None if value is None else _as_lengths(value))

    @property
    def _known(self) -> tuple[int | None, int | torch.Tensor | None]:
        """The number of prompts and of prompt columns in this thread or task."""
        return contexts.active().get(self._key, (None, None))

    def _set_known(self, prompts: int | None, length: int | torch.Tensor | None) -> None:
        contexts.activate(self._key, (prompts, length))
        self.shared.prompts, self.shared.length = prompts, length

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Place:
        """Return the place of a forward pass that begins with these arguments."""
        if len(args) > 1:  # the cache may be a positional argument
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args)), **kwargs}
        inputs = kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs.get("inputs_embeds")
        if inputs is None and args:
            inputs = args[0]
        shape = (inputs.shape[0], inputs.shape[1]) if isinstance(inputs, torch.Tensor) and inputs.dim() > 1 else None
        cache: Any = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        self.shared.shape, self.shared.past = shape, past
        if contexts.is_compiling():
            return self.shared
        place = Place(*self._known, shape, past)
        if self._tokens != "all" and not self._warned and place.length is None and past:
            self._warned = True
            warnings.warn(
                f"a forward pass continues a cache, and tokens={self._tokens!r} needs the end of the prompt, which is "
                "unknown, so all its tokens count as prompt; set prompt_length on the object that steer returned, or "
                "call network.generate, not a reference to it from before the network was steered.",
                stacklevel=4,
            )
        return place

    def called_alone(self) -> Place:
        """Return the place of an activation when a part of the network is called alone."""
        return Place(*self._known)

    @contextmanager
    def generating(self, prompts: int, length: int) -> Iterator[None]:
        """Set, within the block, the number of prompts that `generate` continues and the columns of each."""
        was_known, before = self._key in contexts.active(), self._known
        self._set_known(prompts, length)
        try:
            yield
        finally:
            self._set_known(*before)
            if not was_known:  # a thread may outlive the steering
                contexts.deactivate(self._key)


class _Generate:
    """A wrapper of the network's `generate` that gives the prompt length to every `Positions` of this network."""

    def __init__(self, network: nn.Module) -> None:
        self.followers: list[Positions] = []
        self.own = {k: v for k, v in network.__dict__.items() if k == "generate"}  # the user may have set one
        self._network, self._original = network, network.generate
        update_wrapper(self, self._original, updated=())  # pyright: ignore[reportArgumentType]

    def __call__(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        choices = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next((choice for choice in choices if choice is not None), None)
        prompts, length = (1, 1) if prompt is None else prompt.shape[:2]  # without a prompt, generate adds one token
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
    """Check that `tokens` is one of the four choices."""
    if not isinstance(tokens, str) or tokens not in get_args(Tokens):
        raise LineasError(f"tokens must be 'all', 'prompt', 'generated' or 'answer', not {tokens!r}.")


def _as_lengths(value: Any) -> int | torch.Tensor:
    error = LineasError(f"prompt_length is a number of columns, 0 or more, or one per row [batch], not {value!r}.")
    try:
        lengths = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise error from None
    is_whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if not is_whole or lengths.dim() > 1 or not lengths.numel() or bool((lengths < 0).any()):
        raise error
    return lengths.clone() if lengths.dim() else int(lengths)
