"""Samples: prompts encoded once, and batches of them, cut into parts that run at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from lineas.sites import Reading, Site


class Part(Protocol):
    """Prompts that run together."""

    @property
    def size(self) -> int:
        """The number of tokens that are computed."""
        ...

    @property
    def rows(self) -> torch.Tensor:
        """The indices of these prompts in the batch, `[b]`."""
        ...

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """Return one activation of each prompt, `[b, d]`."""
        ...

    def passes(self, site: Site) -> int | None:
        """Return how often a site is read in a run; None for every time that its module runs."""
        ...

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return the block in which the part must run, also when checkpointed blocks run again."""
        ...


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True)
class Batch(Generic[PartT]):
    """Prompts that are ready to run.

    Args:
        parts: the prompts, cut into parts; texts are sorted by length.
        limit: largest number of tokens in a part; None for no limit.
    """

    parts: list[PartT]
    size: int
    limit: int | None

    @property
    def at_once(self) -> bool:
        """Whether all parts together stay within the limit of one, so that one backward pass can cover them."""
        return self.limit is None or sum(part.size for part in self.parts) <= self.limit


@dataclass(frozen=True)
class Samples(Generic[PartT]):
    """Prompts encoded once, for any number of batches.

    Args:
        truncated: number of prompts that were cut.
        longest: number of tokens after which a prompt is cut.
        in_parts: function from indices of prompts, and the maximum number of tokens in a part, to parts.
        ids: token ids of each text; empty for image models.
    """

    prompts: Sequence[str]
    truncated: int
    longest: int
    in_parts: Callable[[Sequence[int], int | None], list[PartT]]
    ids: Sequence[list[int]] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, limit: int | None = None, rows: Sequence[int] | None = None) -> Batch[PartT]:
        """Return a batch of the prompts with these indices (all by default), in parts of at most `limit` tokens."""
        rows = range(len(self)) if rows is None else rows
        return Batch(self.in_parts(rows, limit), len(rows), limit)
