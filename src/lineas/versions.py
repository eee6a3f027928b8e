"""Versions and time, recorded with every result."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def packages() -> dict[str, str]:
    """Return the versions of lineas, torch and transformers; "unknown" for a package that is not installed."""
    return {name: _version(name) for name in ("lineas", "torch", "transformers")}


def lineas_version() -> str:
    """Return the version of lineas, or "unknown" if it is not installed."""
    return _version("lineas")


def version_of(name: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def stamp() -> dict[str, Any]:
    """Return a dict with `versions` (of packages and Python) and `created` (the time in UTC)."""
    return {
        "versions": {**packages(), "python": platform.python_version()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    return version_of(name) or "unknown"
