"""What a request says about steering: names and strengths, from an extra argument or from the model's name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection

from lineas.checks import Bounds
from lineas.errors import LineasError, shown

ARGUMENT = "lineas"
"""The key of `vllm_xargs` (in Python: of `SamplingParams.extra_args`) that says how a request is steered."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
STRENGTHS = Bounds(-1000, 1000)
"""Strengths beyond overflow half precision."""
SALT = "lineas-"
"""How the cache salts of steered requests begin."""


def parse(text: object, loaded: Collection[str]) -> dict[str, float]:
    """Strengths by name from `"calm:0.7,brief:0.3"`; a name alone means strength 1, `@` may stand for `:`.

    Args:
        text: as a client sent it.
        loaded: the names there are.

    Returns:
        the strengths that are not 0.

    Raises:
        LineasError: for an unknown name, a name said twice, or a strength that is no number within bounds.

    >>> parse("calm:0.7,brief", ["brief", "calm"])
    {'calm': 0.7, 'brief': 1.0}
    """
    if not isinstance(text, str):
        raise LineasError(f"steering is written as 'name:strength,name:strength', not {shown(text)}. {_loaded(loaded)}")
    strengths: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",")):
        name, said, value = (bit.strip() for bit in part.replace("@", ":").partition(":"))
        if name not in loaded:
            raise LineasError(f"there is no intervention {shown(name)} here. {_loaded(loaded)}")
        if name in strengths:
            raise LineasError(f"the intervention {name!r} has two strengths in {shown(text)}. {_loaded(loaded)}")
        strengths[name] = _strength(name, value, loaded) if said else 1.0
    return {name: strength for name, strength in strengths.items() if strength != 0}


def split_model(model: str, bases: Collection[str]) -> tuple[str, str] | None:
    """The base and the steering of `"MODEL:calm@0.7"`; None when no base is followed by a colon.

    >>> split_model("SmolLM2:calm@0.7,brief@0.3", ["SmolLM2"])
    ('SmolLM2', 'calm@0.7,brief@0.3')
    """
    for base in sorted(bases, key=len, reverse=True):
        if model.startswith(f"{base}:"):
            return base, model[len(base) + 1 :]
    return None


def salted(salt: str | None, strengths: Collection[tuple[str, float]]) -> str | None:
    """The salt under which a request's prefix is cached: one of its own for every way of steering.

    A client's own salt stays what it is without steering, unless it looks like one of these.

    Args:
        salt: the client's.
        strengths: pairs of what tells an intervention's content from every other's, and a strength; two names may
            have one content.
    """
    if not strengths and not (salt or "").startswith(SALT):
        return salt
    told = json.dumps([salt, sorted(strengths)])
    return SALT + hashlib.sha256(told.encode()).hexdigest()


def _strength(name: str, value: str, loaded: Collection[str]) -> float:
    try:
        return STRENGTHS.read("it", value)
    except LineasError:
        raise LineasError(f"the strength of {name!r} is {shown(value)}, not {STRENGTHS}. {_loaded(loaded)}") from None


def _loaded(names: Collection[str]) -> str:
    return f"Loaded: {', '.join(sorted(names)) or 'none'}."
