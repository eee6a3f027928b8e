"""Methods of committed results, described so that what they were measured with is found again."""

from __future__ import annotations

from typing import Any

import lineas


def relative(**settings: Any) -> lineas.LinEAS:
    """Return LinEAS with steps measured in deviations: 20, unless the settings say otherwise."""
    return lineas.LinEAS(**{"optimizer": "relative", "steps": 20, **settings})


def settings_of(method: Any) -> dict[str, Any]:
    """Return the settings of a method, without a budget that it does not have: older results know none."""
    return {name: value for name, value in vars(method).items() if (name, value) != ("divergence", None)}


def written(method: Any) -> str:
    """Return a method with its settings as a text, without a budget that it does not have."""
    return str(method).replace(", divergence=None", "")
