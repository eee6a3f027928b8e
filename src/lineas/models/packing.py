"""Packing: prompts laid end to end in one sequence, with an attention that sees each of them alone.

Everything but attention works token by token, so a pack costs what its tokens cost, without padding. Attention gathers
the tokens of prompts of similar length into rows, padded on the right, where causality hides the padding; so no prompt
pays for the others of its pack.
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
from lineas.modules import input_device
from lineas.steering.exclusive import guarded

NAME = "lineas_packed"
PADDING_SHARE = 0.2
"""A bucket ends when a further prompt would make its padding exceed this share of its tokens."""
SHORT = 256
"""On a CPU, rows up to this many tokens take plain matrix products: fused attention's backward is slower there."""
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
"""By type, how far packed and single logits of half the tokens may differ, relative to their norm; else 0.05."""

_layout: ContextVar[Layout] = ContextVar("layout")
_replaced: ContextVar[set[str]] = ContextVar("replaced")
_calls: ContextVar[list[str]] = ContextVar("calls")
_ways: dict[int, str] = {}
"""By the id of a config, the attention that it names while no pack runs."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of prompts that lie end to end go when attention sees each prompt alone.

    Args:
        buckets: for each, which token fills each place, int64 `[prompts, width]`; padding repeats a prompt's first.
        back: the place of each token among all buckets' places, laid end to end, int64 `[tokens]`.
    """

    buckets: tuple[torch.Tensor, ...]
    back: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """The layout of prompts of these lengths, shortest first."""
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
    """Cut rows that are sorted by length into runs with little padding, of at most `limit` tokens with it."""
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
    """Within the block, attention sees each prompt of the pack alone; other threads are kept off the network."""
    configs: dict[int, Any] = {id(m.config): m.config for m in network.modules() if hasattr(m, "config")}
    with guarded(network):
        before = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation")]
        _ways.update({id(c): implementation for c, implementation in before if implementation != NAME})
        token, replaced = _layout.set(layout), _replaced.set({_ways[id(c)] for c, _ in before})
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
    """Why a network's prompts cannot be packed; None where they can, found by comparing a pack with single prompts."""
    config: Any = getattr(network, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers = getattr(text, "num_hidden_layers", None)
    if layers is None:
        return "its config does not say how many layers it has"
    if set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}:
        return "not all of its layers are causal attention"
    with guarded(network):
        return _why_it_differs(network, text, layers)


def _why_it_differs(network: nn.Module, text: Any, layers: int) -> str | None:
    """The same, of a network whose config promises that it can."""
    device = input_device(network)
    lengths = [3, 5, 6]
    ids = (torch.arange(sum(lengths), device=device) + text.vocab_size // 2) % text.vocab_size
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    training = [module for module in network.modules() if module.training]
    token = _calls.set([])
    try:
        network.eval()  # dropout would differ
        alone = [network(input_ids=one[None], use_cache=False).logits[0] for one in ids.split(lengths)]
        with packed(network, Layout.of(lengths, device)):
            together = network(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        seen = len(_calls.get())
    except Exception as error:  # whatever a network of unknown make answers, padding is still there
        return f"it does not run that way ({type(error).__name__}: {first_line(error)})"
    finally:
        _calls.reset(token)
        for module in training:
            module.training = True
    if seen != layers:
        return f"only {seen} of its {layers} layers let their attention be replaced"
    single = torch.cat(alone).float()
    deviation = float(((together.float() - single).norm(dim=-1) / single.norm(dim=-1)).median())  # a few may be chaotic
    if not deviation < ROUNDING.get(together.dtype, 0.05):
        return f"its output differs by {100 * deviation:.1g} %"
    return None


def attend(module: nn.Module, *tensors: Any, **others: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention in the form in which transformers calls it: over a pack, where one runs in this thread or task.

    A pass of another thread that was under way when a pack began goes on as it began.
    """
    if _layout.get(None) is not None:
        return _attend(module, *tensors, **others)
    config: Any = module.config
    own = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    attention: Any = AttentionInterface().get(_ways[id(config)], own)
    return attention(module, *tensors, **others)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over a pack.

    Args:
        query: `[1, heads, tokens, width]`.
        key: `[1, key heads, tokens, width]`, shared by groups of heads where there are fewer of them.
        value: the same.
        scaling: of the products; by default `width ** -0.5`.
        softcap: bounds the products by `c tanh(x / c)` (Gemma 2).
        sliding_window: how many tokens back a token sees.

    Returns:
        `[1, tokens, heads, width]`.
    """
    unknown = [name for name in ("s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {unknown[0]}")
    if (calls := _calls.get(None)) is not None:
        calls.append(type(module).__name__)
    if "sdpa" in _replaced.get():
        softcap = None  # it leaves that out (Gemma 2 in transformers 4), and so the network's texts do
    layout = _layout.get()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rows = zip(*(_Apart.apply(x, layout.back, *layout.buckets) for x in (query, key, value)))
    outs = [_causal(q, k, v, scale, softcap, sliding_window) for q, k, v in rows]  # [prompts, heads, width, d]
    laid = torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outs])  # [places, heads, d]
    together: Any = _Together.apply(laid, layout.back)
    return together[None], None


AttentionInterface.register(NAME, attend)


class _Apart(torch.autograd.Function):
    """Tokens `[1, h, t, d]` to one tensor a bucket, `[prompts, h, width, d]`; the way back is a gather as well."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, back: torch.Tensor, *buckets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(back)
        tokens = x[0].transpose(0, 1)  # [t, h, d]
        return tuple(tokens[bucket].transpose(1, 2) for bucket in buckets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (back,) = ctx.saved_tensors
        laid = torch.cat([grad.transpose(1, 2).flatten(0, 1) for grad in grad_outputs])  # [places, h, d]
        return laid[back].transpose(0, 1)[None], None, *[None] * len(grad_outputs)


class _Together(torch.autograd.Function):
    """Places `[places, h, d]` to tokens `[t, h, d]`; padding is dropped and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, laid: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.places = laid.shape[0]
        return laid[back]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (back,), (grad,) = ctx.saved_tensors, grad_outputs
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, back, grad), None


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, softcap: float | None, window: int | None
) -> torch.Tensor:
    """Causal attention within each row of `[prompts, heads, width, d]`."""
    width = q.shape[2]
    windowed = window is not None and width > window
    if not softcap and not windowed and (q.device.type != "cpu" or width > SHORT):
        return nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    seen = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
    if windowed:
        seen = seen.triu(1 - window)  # pyright: ignore[reportOperatorIssue]
    mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, float("-inf"))
    if softcap:
        products = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) + mask
    else:
        products = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
        products = products.unflatten(0, q.shape[:2])
    return products.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
