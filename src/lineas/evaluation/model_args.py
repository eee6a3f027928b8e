"""The arguments of lm-eval's model type `lineas` (`--model_args`): known ones are checked, all others are refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from lineas.errors import LineasError

OWN = ("pretrained", "intervention", "strength", "tokens", "other_model", "dtype", "revision", "device", "batch_size")
ACTING: dict[str, type | tuple[type, ...]] = {
    "max_length": int,
    "max_batch_size": int,
    "truncation": bool,
    "add_bos_token": bool,
    "prefix_token_id": int,
    "think_end_token": (str, int),
    "enable_thinking": bool,
    "chat_template_args": dict,
}
"""Arguments of lm-eval's own `hf` that have an effect on a loaded model, and their types."""
RENAMED = {"force": "other_model", "model": "pretrained", "name": "pretrained"}


def check_model_args(arguments: Mapping[str, Any], of_hf: Sequence[str] = ()) -> None:
    """Refuse arguments that would have no effect: unknown ones, and those of `hf` that say how to load weights.

    The arguments are those beside OWN; `of_hf` are the names of all arguments of `hf`, for the sentence.
    """
    names = (*OWN, *ACTING)
    for name, value in arguments.items():
        if name not in ACTING:
            near = RENAMED.get(name) or next(iter(difflib.get_close_matches(name, names, 1)), None)
            hint = f"; did you mean {near}?" if near else "."
            if name in of_hf:
                raise LineasError(
                    f"'{name}' is an argument of lm-eval's hf that does nothing for the model type lineas, which loads "
                    f"the model itself{hint} It takes {', '.join(names)}."
                )
            raise LineasError(f"the model type lineas has no argument '{name}'{hint} It takes {', '.join(names)}.")
        kind = ACTING[name]
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            types = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise LineasError(f"the model argument {name} is {types}, not {value!r}.")


def check_batch_size(value: Any) -> None:
    """Refuse a batch size that lm-eval does not take."""
    size = str(value).removeprefix("auto:")
    if value is not None and value != "auto" and not (size.isascii() and size.isdigit() and int(size) > 0):
        raise LineasError(f"batch_size is a whole number of at least 1, auto or auto:N, not {value!r}.")
