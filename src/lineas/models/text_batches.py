"""Batches of prompts that are ready to run: packed end to end if the network allows it, else padded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lineas.errors import LineasError
from lineas.models.packing import Layout, length_buckets, packed
from lineas.sites import Reading, Site


@dataclass(frozen=True)
class _TextPart:
    ids: torch.Tensor

    @property
    def size(self) -> int:
        """The number of tokens that are computed, with padding."""
        return self.ids.numel()

    def passes(self, site: Site) -> int:
        """Return 1, since a text runs once."""
        return 1

    @property
    def owners(self) -> torch.Tensor:
        """The number in the part of each token's prompt, int64 in the shape of the ids; -1 for padding."""
        raise NotImplementedError

    @property
    def followed(self) -> torch.Tensor:
        """Whether another token of the same prompt follows, for each token, in the shape of the ids."""
        owners = self.owners
        return nn.functional.pad(owners[:, :-1] == owners[:, 1:], (0, 1)) & (owners >= 0)


@dataclass(frozen=True)
class PaddedPart(_TextPart):
    """Prompts of similar length that run together, padded on the right.

    Args:
        ids: token ids, int64 `[b, t]`.
        mask: 1 for real tokens, 0 for padding, int64 `[b, t]`.
        rows: indices of these prompts in the whole batch, `[b]`.
    """

    mask: torch.Tensor
    rows: torch.Tensor

    @property
    def owners(self) -> torch.Tensor:
        """The number in the part of each token's prompt, int64 `[b, t]`; -1 for padding."""
        return torch.where(self.mask.bool(), torch.arange(len(self.ids), device=self.ids.device).unsqueeze(1), -1)

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return an empty block."""
        return nullcontext()

    def run(self, network: nn.Module) -> Any:
        """Run one forward pass."""
        return network(input_ids=self.ids, attention_mask=self.mask, use_cache=False)

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """Return `[b, t, d]` or `[b * t, d]` pooled over each prompt's tokens, float32 `[b, d]`."""
        tokens = _as_tokens(activation, self.ids, site).to(torch.float32)
        if pooling == "none":
            return tokens[self.mask.bool()]
        if pooling == "max":
            return tokens.masked_fill(self.mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
        weights = self.mask if pooling == "sum" else self.mask / self.mask.sum(1, keepdim=True)  # [b, t]
        return torch.einsum("bt,btd->bd", weights.to(torch.float32), tokens)


@dataclass(frozen=True)
class PackedPart(_TextPart):
    """Prompts laid end to end in one sequence, shortest first.

    Args:
        ids: token ids, int64 `[1, t]`.
        positions: position of each token in its own prompt, `[1, t]`.
        weights: weight of each token in its prompt's mean, float32 `[b, t]`.
        rows: indices of these prompts in the whole batch, `[b]`.
        layout: assignment of the tokens to rows of attention.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor
    layout: Layout

    @property
    def owners(self) -> torch.Tensor:
        """The number in the part of each token's prompt, int64 `[1, t]`."""
        return self.weights.argmax(0, keepdim=True)

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return a block in which attention sees each prompt alone."""
        return packed(network, self.layout)

    def run(self, network: nn.Module) -> Any:
        """Run one forward pass."""
        with self.running(network):
            mask = torch.ones_like(self.ids)  # without one, some networks search for padding, which waits for the GPU
            return network(input_ids=self.ids, attention_mask=mask, position_ids=self.positions, use_cache=False)

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """Return `[1, t, d]` or `[t, d]` pooled over each prompt's tokens, float32 `[b, d]`."""
        tokens = _as_tokens(activation, self.ids, site)[0].to(torch.float32)
        if pooling == "none":
            return tokens
        if pooling == "max":
            lowest = tokens.new_full((len(self.rows), tokens.shape[1]), -torch.inf)
            return lowest.scatter_reduce(0, self.owners[0].unsqueeze(1).expand_as(tokens), tokens, "amax")
        return (self.weights.sign() if pooling == "sum" else self.weights) @ tokens


def pack(encoded: Sequence[Sequence[int]], limit: int | None, device: torch.device) -> list[PackedPart]:
    """Pack token ids into parts of at most `limit` tokens; a longer prompt is a part of its own."""
    runs: list[list[int]] = [[]]
    tokens = 0
    for row in _by_length(encoded):
        if runs[-1] and limit is not None and tokens + len(encoded[row]) > limit:
            runs.append([])
            tokens = 0
        runs[-1].append(row)
        tokens += len(encoded[row])
    return [_packed_part(encoded, rows, device) for rows in runs]


def pad(encoded: Sequence[Sequence[int]], limit: int | None, device: torch.device, filler: int) -> list[PaddedPart]:
    """Pad token ids with `filler` into parts with little padding, of at most `limit` tokens with it."""
    order = _by_length(encoded)
    parts = []
    for run in length_buckets([len(encoded[row]) for row in order], limit):
        rows = [order[i] for i in run]
        ids, mask = padded([encoded[row] for row in rows], filler)
        parts.append(PaddedPart(ids.to(device), mask.to(device), torch.tensor(rows, device=device)))
    return parts


def padded(encoded: Sequence[Sequence[int]], filler: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids padded to the longest text, and a mask that is 0 for the padding, both int64 `[b, t]`."""
    texts = [torch.tensor(ids, dtype=torch.long) for ids in encoded]
    mask = pad_sequence([torch.ones_like(text) for text in texts], True, 0, side)
    return pad_sequence(texts, True, filler, side), mask


def _by_length(encoded: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(encoded)), key=lambda row: len(encoded[row]))


def _packed_part(encoded: Sequence[Sequence[int]], rows: list[int], device: torch.device) -> PackedPart:
    lengths = [len(encoded[row]) for row in rows]
    ids = torch.tensor([token for row in rows for token in encoded[row]])
    positions = torch.cat([torch.arange(length) for length in lengths])
    weights = torch.block_diag(*(torch.full((1, length), 1 / length) for length in lengths))
    return PackedPart(
        ids[None].to(device), positions[None].to(device), weights.to(device), torch.tensor(rows, device=device),
        Layout.of(lengths, device),
    )  # fmt: skip


def _as_tokens(activation: torch.Tensor, ids: torch.Tensor, site: Site) -> torch.Tensor:
    """Return an activation as `[b, t, d]`, also if a layer has flattened it to `[b * t, d]`."""
    if activation.dim() == 2 and activation.shape[0] == ids.numel():
        activation = activation.view(*ids.shape, -1)
    if activation.shape[:2] != ids.shape or activation.dim() != 3:
        raise LineasError(
            f"site {site.name} gives an activation of shape {list(activation.shape)}; expected "
            f"[{ids.shape[0]} prompts, {ids.shape[1]} tokens, neurons]. Choose another module."
        )
    return activation
