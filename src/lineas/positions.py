"""Positions: which row and which column of a text every activation belongs to, whatever the current forward's shape."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError


class Positions:
    """Follows a network's forward passes: batch rows, columns counted from the start of the text, prompt length.

    A column is "prompt" when it lies before `prompt_length`, the width of what was given to `generate`. Columns are
    counted through the KV cache, so chunked prefill and several tokens a step (assisted decoding) come out right.

    Args:
        network: the root module, whose keyword arguments are read before each forward pass.
        follow_generate: take the prompt length from every call of the network's `generate`.
    """

    def __init__(self, network: nn.Module, follow_generate: bool) -> None:
        self.prompt_length: int | torch.Tensor | None = None
        self._network = network
        self._shape: tuple[int, int] | None = None
        self._past = 0
        self._handle: Any = network.register_forward_pre_hook(self._before, with_kwargs=True)
        self._wrapped = follow_generate and hasattr(network, "generate")
        if self._wrapped:
            self._wrap_generate()

    def remove(self) -> None:
        """Stop following; may be repeated."""
        self._handle.remove()
        if self._wrapped:
            self._network.__dict__.pop("generate", None)
            self._wrapped = False

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

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids")
        if given is None:
            given = kwargs.get("inputs_embeds")
        if given is None and args:
            given = args[0]
        self._shape = (given.shape[0], given.shape[1]) if isinstance(given, torch.Tensor) and given.dim() > 1 else None
        cache: Any = kwargs.get("past_key_values")
        self._past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0

    def _wrap_generate(self) -> None:
        original = self._network.generate

        @wraps(original)  # type: ignore[arg-type]
        def generate(inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
            given = next(
                (x for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None), None
            )
            before = self.prompt_length
            if given is not None:
                self.prompt_length = given.shape[1]
            try:
                return original(inputs, *args, **kwargs)  # type: ignore[operator]
            finally:
                self.prompt_length = before

        self._network.__dict__["generate"] = generate
