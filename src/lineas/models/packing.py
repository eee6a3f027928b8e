"""Packing: prompts laid end to end in one sequence, with an attention that sees each prompt alone.

All other layers work token by token, so a pack has no padding. Attention gathers prompts of similar length into rows,
padded on the right, where causal attention does not see the padding. So no prompt's cost depends on the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from lineas.errors import first_line
from lineas.modules import input_device, text_config
from lineas.steering.exclusive import guarded

NAME = "lineas_packed"
PADDING_SHARE = 0.2
"""Maximum share of padding among the tokens of a bucket; a prompt that would exceed it starts a new bucket."""
SHORT = 256
"""Maximum length of rows that use plain matrix products on a CPU, where the backward of fused attention is slower."""
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""For each type, the allowed median difference of packed and single logits, relative to their norm; else 0.05."""

_layout: ContextVar[Layout] = ContextVar("layout")
_replaced: ContextVar[set[str]] = ContextVar("replaced")
_calls: ContextVar[list[str]] = ContextVar("calls")
_original_attention: dict[int, str] = {}
"""For each config's id, the name of its attention while no pack runs."""


@dataclass(frozen=True)
class Layout:
    """The assignment of a pack's tokens to the rows of attention.

    Args:
        buckets: for each bucket, the index of the token at each place, int64 `[prompts, width]`; padding is a prompt's
            first token.
        back: the place of each token when all buckets' places are laid end to end, int64 `[tokens]`.
    """

    buckets: tuple[torch.Tensor, ...]
    back: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """Return the layout of prompts of these lengths, shortest first."""
        starts = list(accumulate(lengths, initial=0))
        buckets, back, places = [], [], 0
        for rows in length_buckets(lengths):
            width = max(lengths[row] for row in rows)
            bucket = torch.empty(len(rows), width, dtype=torch.long)
            for at, row in enumerate(rows):
                columns = torch.arange(width)
                bucket[at] = starts[row] + torch.where(columns < lengths[row], columns, 0)
                back.append(places + at * width + torch.arange(lengths[row]))
            buckets.append(bucket.to(device))
            places += bucket.numel()
        return cls(tuple(buckets), torch.cat(back).to(device))


def length_buckets(lengths: Sequence[int], limit: int | None = None) -> list[list[int]]:
    """Cut rows of ascending lengths into runs with little padding, of at most `limit` tokens with it."""
    runs: list[list[int]] = [[]]
    real = 0
    for row, length in enumerate(lengths):
        padded = length * (len(runs[-1]) + 1)
        wasteful = padded - (real + length) > PADDING_SHARE * padded
        if runs[-1] and (wasteful or (limit is not None and padded > limit)):
            runs.append([])
            real = 0
        runs[-1].append(row)
        real += length
    return runs


@contextmanager
def packed(network: nn.Module, layout: Layout) -> Iterator[None]:
    """Let attention see each prompt of the pack alone within the block, in which other threads are refused."""
    configs: dict[int, Any] = {id(m.config): m.config for m in network.modules() if hasattr(m, "config")}
    with guarded(network):
        before = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation")]
        _original_attention.update({id(c): name for c, name in before if name != NAME})
        token, replaced = _layout.set(layout), _replaced.set({_original_attention[id(c)] for c, _ in before})
        try:
            for config, _ in before:
                config._attn_implementation = NAME
            yield
        finally:
            for config, implementation in before:
                config._attn_implementation = implementation
            _layout.reset(token)
            _replaced.reset(replaced)


@torch.no_grad()
def reason_not_packable(network: nn.Module) -> str | None:
    """Return the reason why a network's prompts cannot be packed; None if a pack gives the same as single prompts."""
    text = text_config(network)
    if getattr(text, "num_hidden_layers", None) is None:
        return "its config does not say how many layers it has"
    if set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}:
        return "not all of its layers are causal attention"
    with guarded(network):
        return _reason_from_trial(network, text)


def _reason_from_trial(network: nn.Module, text: Any) -> str | None:
    """Run a pack and its prompts one by one, and return the reason why their outputs differ, or None."""
    device, lengths = input_device(network), [3, 5, 6]
    ids = (torch.arange(sum(lengths), device=device) + text.vocab_size // 2) % text.vocab_size
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    training = [module for module in network.modules() if module.training]
    token = _calls.set([])
    try:
        network.eval()  # dropout would differ
        single = torch.cat([network(input_ids=one[None], use_cache=False).logits[0] for one in ids.split(lengths)])
        with packed(network, Layout.of(lengths, device)):
            together = network(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        replaced, layers = len(_calls.get()), text.num_hidden_layers
    except Exception as error:  # prompts can always be padded instead
        return f"it does not run that way ({type(error).__name__}: {first_line(error)})"
    finally:
        _calls.reset(token)
        for module in training:
            module.training = True
    if replaced != layers:
        return f"only {replaced} of its {layers} layers let their attention be replaced"
    single = single.float()
    deviation = float(((together.float() - single).norm(dim=-1) / single.norm(dim=-1)).median())  # ignores outliers
    if not deviation < ROUNDING.get(together.dtype, 0.05):
        return f"its output differs by {100 * deviation:.1g} %"
    return None


def attend(module: nn.Module, *tensors: Any, **others: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention as transformers calls it: over a pack if one runs in this thread or task.

    In other threads, a pass that was running before the pack uses the network's original attention.
    """
    if _layout.get(None) is not None:
        return _attend(module, *tensors, **others)
    config: Any = module.config
    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    attention: Any = AttentionInterface().get(_original_attention[id(config)], eager)
    return attention(module, *tensors, **others)


def _attend(
    module: nn.Module,
    query: torch.Tensor,  # [1, heads, tokens, width]
    key: torch.Tensor,  # [1, key heads, tokens, width]; groups of heads share a key head if there are fewer
    value: torch.Tensor,  # as key
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,  # the bound c of the products, as c tanh(x / c) (Gemma 2)
    sliding_window: int | None = None,  # the number of tokens that a token sees, itself included
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over a pack, `[1, tokens, heads, width]`, and return None for the attention weights."""
    for name in ("s_aux", "position_bias", "head_mask"):
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    if (calls := _calls.get(None)) is not None:
        calls.append(type(module).__name__)
    if "sdpa" in _replaced.get():
        softcap = None  # transformers 4 ignores it in sdpa (Gemma 2), and packs must agree with single prompts
    layout = _layout.get()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rows = zip(*(_ToBuckets.apply(x, layout.back, *layout.buckets) for x in (query, key, value)))
    outputs = [_causal(q, k, v, scale, softcap, sliding_window) for q, k, v in rows]  # [prompts, heads, width, d]
    places = torch.cat([output.transpose(1, 2).flatten(0, 1) for output in outputs])  # [places, heads, d]
    tokens: Any = _FromBuckets.apply(places, layout.back)
    return tokens[None], None


AttentionInterface.register(NAME, attend)


class _ToBuckets(torch.autograd.Function):
    """Gather tokens `[1, h, t, d]` into one tensor per bucket, `[prompts, h, width, d]`; the backward gathers too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, back: torch.Tensor, *buckets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(back)
        tokens = x[0].transpose(0, 1)  # [t, h, d]
        return tuple(tokens[bucket].transpose(1, 2) for bucket in buckets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (back,) = ctx.saved_tensors
        places = torch.cat([grad.transpose(1, 2).flatten(0, 1) for grad in grad_outputs])  # [places, h, d]
        return places[back].transpose(0, 1)[None], None, *[None] * len(grad_outputs)


class _FromBuckets(torch.autograd.Function):
    """Gather tokens `[t, h, d]` from places `[places, h, d]`; padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, places: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.places = places.shape[0]
        return places[back]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (back,), (grad,) = ctx.saved_tensors, grad_outputs
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, back, grad), None


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, softcap: float | None, window: int | None
) -> torch.Tensor:
    """Compute causal attention within each row of `[prompts, heads, width, d]`."""
    width = q.shape[2]
    windowed = window is not None and width > window
    if not softcap and not windowed and (q.device.type != "cpu" or width > SHORT):
        grouped = q.shape[1] != k.shape[1]
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    visible = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
    if windowed:
        visible = visible.triu(1 - window)  # pyright: ignore[reportOperatorIssue]
    mask = torch.zeros_like(visible, dtype=q.dtype).masked_fill(~visible, float("-inf"))
    if softcap:
        products = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) + mask
    else:
        products = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
        products = products.unflatten(0, q.shape[:2])
    return products.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
