"""lm-eval's own model class, changed in two ways: contexts have no end-of-text token, and NaN is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lineas.models.sampling import Finite
from lineas.models.text import special_around


def continuing(base: Any) -> Any:
    """Return a subclass of lm-eval's HFLM that encodes contexts as `TextModel.token_ids` does."""

    class Continuing(base):
        """HFLM that removes end-of-text tokens from contexts and refuses predictions that are not finite."""

        def tok_encode(self, string: str, *, left_truncate_len: int | None = None, **options: Any) -> list[int]:
            """Return the token ids of one text, at most the last `left_truncate_len`."""
            ids = super().tok_encode(string, **options)
            ids = ids[: len(ids) - self._added_after(string, ids)]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def tok_batch_encode(
            self, strings: Sequence[str], *args: Any, left_truncate_len: int | None = None, **options: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """Return the token ids and the mask of texts, `[n, t]` each, padded on the left."""
            after = special_around(self.tokenizer)[1]
            length = left_truncate_len and left_truncate_len + after
            ids, mask = super().tok_batch_encode(strings, *args, left_truncate_len=length, **options)
            end = ids.shape[1] - self._added_after(strings[0], ids[0].tolist())
            begin = max(0, end - left_truncate_len) if left_truncate_len else 0
            return ids[:, begin:end], mask[:, begin:end]

        def _added_after(self, text: str, ids: list[int]) -> int:
            """Return the number of tokens that the tokenizer added after a text."""
            after = special_around(self.tokenizer)[1]
            if not after or ids[-after:] != list(self.tokenizer("a").input_ids)[-after:]:
                return 0
            plain = self.tokenizer(text, add_special_tokens=False).input_ids
            rest = ids[:-after]  # its beginning may be truncated
            common = min(len(rest), len(plain))
            return after if rest[len(rest) - common :] == plain[len(plain) - common :] else 0

        def _model_generate(self, *args: Any, **options: Any) -> Any:
            return super()._model_generate(*args, logits_processor=[Finite()], **options)

    return Continuing
