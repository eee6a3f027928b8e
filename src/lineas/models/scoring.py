"""What a text model predicts for given tokens: chunks of similar length with their logits, as memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lineas.models.batches import pad
from lineas.models.text import TextModel

LOGITS = 2**26
"""Numbers of logits that are held at once."""


@dataclass(frozen=True)
class Chunk:
    """Texts of similar length that run together.

    Args:
        ids: token ids, `[b, t]`, padded on the right.
        mask: 1 for real tokens, `[b, t]`.
        rows: which texts these are, `[b]`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor

    def logits(self, model: TextModel, prefix: torch.Tensor | None = None) -> torch.Tensor:
        """What the model predicts for each token after the first, float32 `[b, t - 1, vocabulary]`.

        Args:
            model: steered or not.
            prefix: ids that stand before each text (but after a token such as `<s>`), `[p]`.
        """
        ids, mask = self.ids, self.mask
        if prefix is not None:
            before, special = prefix.expand(len(ids), -1), int(model.starts_with_special)
            ids = torch.cat([ids[:, :special], before, ids[:, special:]], 1)
            mask = torch.cat([torch.ones_like(before), mask], 1)
        found = model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found[:, ids.shape[1] - self.ids.shape[1] : -1].float()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over each text's tokens after the first, `[b]`, of `[b, t - 1]`."""
        real = self.mask[:, 1:]
        return (values * real).sum(1) / real.sum(1)


def chunks(model: TextModel, encoded: Sequence[Sequence[int]], logits: int = LOGITS) -> list[Chunk]:
    """Texts, given as token ids, in chunks that hold at most so many logits at once.

    Args:
        model: whose vocabulary counts.
        encoded: at least one token each.
        logits: numbers; one text that is longer makes a chunk of its own.
    """
    vocabulary: int = model.network.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    parts = pad(encoded, max(1, logits // vocabulary), model.device, model.pad_id)
    return [Chunk(part.ids, part.mask, part.rows) for part in parts]
