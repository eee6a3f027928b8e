"""The steering of a request: names and strengths, from an extra argument or from the model's name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection

from lineas.checks import Bounds
from lineas.errors import LineasError, shown

ARGUMENT = "lineas"
"""The key of a request's steering in `vllm_xargs` (in Python, in `SamplingParams.extra_args`)."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
STRENGTHS = Bounds(-1000, 1000)
"""The allowed strengths; larger ones overflow half precision."""
SALT = "lineas-"
"""The beginning of the cache salts of steered requests."""


def parse(text: object, loaded: Collection[str]) -> dict[str, float]:
    """Read strengths by name from `"calm:0.7,brief:0.3"`; a name alone means strength 1, and `@` equals `:`.

    `loaded` are the names of the loaded interventions. Strengths of 0 are left out.

    >>> parse("calm:0.7,brief", ["brief", "calm"])
    {'calm': 0.7, 'brief': 1.0}
    """
    if not isinstance(text, str):
        raise LineasError(f"steering is written as 'name:strength,name:strength', not {shown(text)}. {_loaded(loaded)}")
    strengths: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",")):
        name, colon, value = (bit.strip() for bit in part.replace("@", ":").partition(":"))
        if name not in loaded:
            raise LineasError(f"there is no intervention {shown(name)} here. {_loaded(loaded)}")
        if name in strengths:
            raise LineasError(f"the intervention {name!r} has two strengths in {shown(text)}. {_loaded(loaded)}")
        strengths[name] = _strength(name, value, loaded) if colon else 1.0
    return {name: strength for name, strength in strengths.items() if strength != 0}


def split_model(model: str, bases: Collection[str]) -> tuple[str, str] | None:
    """Split `"MODEL:calm@0.7"` into the base model and the steering; None if it is no base model with a colon.

    >>> split_model("SmolLM2:calm@0.7,brief@0.3", ["SmolLM2"])
    ('SmolLM2', 'calm@0.7,brief@0.3')
    """
    for base in sorted(bases, key=len, reverse=True):
        if model.startswith(f"{base}:"):
            return base, model[len(base) + 1 :]
    return None


def salted(salt: str | None, strengths: Collection[tuple[str, float]]) -> str | None:
    """Return a request's salt for the prefix cache, which differs for every steering.

    Without steering it is the client's own salt, unless that could be taken for one of a steered request. The strengths
    are pairs of the digest of an intervention's maps and a strength.
    """
    if not strengths and not (salt or "").startswith(SALT):
        return salt
    return SALT + hashlib.sha256(json.dumps([salt, sorted(strengths)]).encode()).hexdigest()


def _strength(name: str, value: str, loaded: Collection[str]) -> float:
    try:
        return STRENGTHS.read("it", value)
    except LineasError:
        raise LineasError(f"the strength of {name!r} is {shown(value)}, not {STRENGTHS}. {_loaded(loaded)}") from None


def _loaded(names: Collection[str]) -> str:
    return f"Loaded: {', '.join(sorted(names)) or 'none'}."
