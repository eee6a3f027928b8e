"""The arguments of lm-eval's model type `lineas` (`--model_args`): known ones are checked, all others refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention

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
"""Arguments of lm-eval's own `hf` that do something for a model that is loaded already, and their types."""
RENAMED = {"force": "other_model", "model": "pretrained", "name": "pretrained"}


def check_model_args(given: Mapping[str, Any], of_hf: Sequence[str] = ()) -> None:
    """Refuse arguments that would be passed over: those that nobody knows, and those by which `hf` loads weights.

    Args:
        given: arguments beside those of OWN.
        of_hf: all that `hf` knows, for the message.

    Raises:
        LineasError: naming the argument, and the nearest right one.
    """
    takes = (*OWN, *ACTING)
    for name, value in given.items():
        if name not in ACTING:
            near = RENAMED.get(name) or next(iter(difflib.get_close_matches(name, takes, 1)), None)
            meant = f"; did you mean {near}?" if near else "."
            if name in of_hf:
                raise LineasError(
                    f"'{name}' is an argument of lm-eval's hf that does nothing for the model type lineas, which loads "
                    f"the model itself{meant} It takes {', '.join(takes)}."
                )
            raise LineasError(f"the model type lineas has no argument '{name}'{meant} It takes {', '.join(takes)}.")
        kind = ACTING[name]
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise LineasError(f"the model argument {name} is {names}, not {value!r}.")


def as_strength(strength: Any, learned: Intervention) -> float:
    """Return a strength as a number; "calibrated" is what was found for the intervention."""
    if strength == "calibrated":
        return learned.calibrated_strength
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise LineasError(f"the model argument strength is a number or 'calibrated', not {strength!r}.")
    return float(strength)


def check_batch_size(given: Any) -> None:
    """Refuse what lm-eval does not take as a batch size."""
    text = str(given)
    least = text.removeprefix("auto:") if text.startswith("auto:") else text
    if given is not None and text != "auto" and not (least.isascii() and least.isdigit() and int(least) > 0):
        raise LineasError(f"batch_size is a whole number of at least 1, auto or auto:N, not {given!r}.")
