"""Samples: prompts encoded once, and batches of them in parts that run at once."""

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
        """Number of tokens that are computed."""
        ...

    @property
    def rows(self) -> torch.Tensor:
        """Indices of these prompts in the batch, `[b]`."""
        ...

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """Return one activation of each prompt, `[b, d]`."""
        ...

    def passes(self, site: Site) -> int | None:
        """Return how often a site is read in a run; None for as often as it is reached."""
        ...

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return what must hold while the part runs, also while blocks of the network run again."""
        ...


PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True)
class Batch(Generic[PartT]):
    """Prompts ready to run.

    Args:
        parts: the prompts, texts sorted by length, cut into parts.
        size: number of prompts, n.
        limit: largest number of tokens in a part; None for no limit.
    """

    parts: list[PartT]
    size: int
    limit: int | None

    @property
    def at_once(self) -> bool:
        """Whether one backward pass may go through all parts: together they stay within the limit of one."""
        return self.limit is None or sum(part.size for part in self.parts) <= self.limit


@dataclass(frozen=True)
class Samples(Generic[PartT]):
    """Prompts encoded once, for any number of batches.

    Args:
        prompts: the n prompts.
        truncated: number of prompts that were cut.
        longest: number of tokens after which a prompt is cut.
        in_parts: makes the parts of a batch, from indices of prompts and the largest number of tokens in a part.
        ids: token ids of each text; empty for prompts of pictures.
    """

    prompts: Sequence[str]
    truncated: int
    longest: int
    in_parts: Callable[[Sequence[int], int | None], list[PartT]]
    ids: Sequence[list[int]] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, limit: int | None = None, rows: Sequence[int] | None = None) -> Batch[PartT]:
        """Return a batch that is ready to run.

        Args:
            limit: largest number of tokens in a part, which runs at once; None for no limit.
            rows: indices of the prompts of this batch; None for all.
        """
        rows = range(len(self)) if rows is None else rows
        return Batch(self.in_parts(rows, limit), len(rows), limit)
