"""lm-eval's own model where it continues texts: contexts end without an end of text, and NaN is no answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lineas.models.sampling import Finite
from lineas.models.text import special_around


def continuing(base: Any) -> Any:
    """Derive from lm-eval's HFLM a class that reads contexts as `TextModel.token_ids` does.

    Args:
        base: HFLM, or a class made of it.
    """

    class Continuing(base):
        """HFLM, whose tokenizer's end of text is taken off again, and whose predictions are finite."""

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **options: Any,
        ) -> list[int]:
            """The ids of one text, at most the last `left_truncate_len`."""
            ids = super().tok_encode(string, add_special_tokens=add_special_tokens, **options)
            ids = ids[: len(ids) - self._added_after(string, ids)]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self, strings: Sequence[str], *args: Any, left_truncate_len: int | None = None, **options: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Ids and mask of texts, `[n, t]` each, padded on the left."""
            after = special_around(self.tokenizer)[1]
            length = left_truncate_len and left_truncate_len + after
            ids, mask = super().tok_batch_encode(strings, *args, left_truncate_len=length, **options)
            kept = ids.shape[1] - self._added_after(strings[0], ids[0].tolist())
            if left_truncate_len:
                return ids[:, :kept][:, -left_truncate_len:], mask[:, :kept][:, -left_truncate_len:]
            return ids[:, :kept], mask[:, :kept]

        def _added_after(self, text: str, ids: list[int]) -> int:
            """Return how many tokens the tokenizer put after a text."""
            after = special_around(self.tokenizer)[1]
            if not after or ids[-after:] != list(self.tokenizer("a").input_ids)[-after:]:
                return 0
            plain = self.tokenizer(text, add_special_tokens=False).input_ids
            rest = ids[:-after]  # its beginning may be cut
            seen = min(len(rest), len(plain))
            return after if rest[len(rest) - seen :] == plain[len(plain) - seen :] else 0

        def _model_generate(self, *args: Any, **options: Any) -> Any:
            return super()._model_generate(*args, logits_processor=[Finite()], **options)

    return Continuing
